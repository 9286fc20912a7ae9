"""What a training survives: kills at random moments, Ctrl-C, a full disk, several processes, more data than memory."""
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import tumorseg as ts
from tumorseg.core import save_json
from tumorseg.data.slices import TABLE, _seal, load_slices
from tumorseg.model.checkpoint import load_model
from tumorseg.model.inference import best_device

CONFIG = ts.Config(epochs=6, width=4, depth=2, batch=4)
QUIET = dict(on_epoch=lambda *_: None)
CHILD = """
import sys
from tumorseg.data.sources import open_data
from tumorseg.training.config import Config
from tumorseg.training.train import train
slices = open_data(sys.argv[1], 48)
print("ready", flush=True)
if sys.argv[3:]: sys.stdin.readline() # for the others
train(slices, sys.argv[2], {config!r}) # begins, or goes on
"""
MINUTES = "takes minutes: TWENTY_KILLS=1 pytest tests/test_survival.py -k twenty"
on_cpu = pytest.mark.skipif(best_device().type != "cpu", reason="bit-identical on the CPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ts.write_demo(tmp_path_factory.mktemp("data") / "demo", patients=8, size=64)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return ts.train(ts.open_data(data, 48), tmp_path_factory.mktemp("whole") / "run", CONFIG, **QUIET)


def same(run, whole):
    ours, theirs = (load_model(path / "model.safetensors") for path in (run, whole))
    columns = ["epoch", "train_loss", "valid_loss", "valid_dice", "lr", "skipped"]
    histories = [pd.read_csv(path / "history.csv")[columns] for path in (run, whole)]
    return (ours[1] == theirs[1] and histories[0].equals(histories[1])
            and all(torch.equal(a, b) for a, b in zip(ours[0].state_dict().values(), theirs[0].state_dict().values())))


def start(data, run, *wait):
    process = subprocess.Popen([sys.executable, "-c", CHILD.format(config=CONFIG), str(data), str(run), *wait],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def kill_and_resume(data, whole, folder, kills):
    "Kill a training `kills` times at random moments, each run until it is finished; the number of kills that hit."
    chance, hits, number = random.Random(0), 0, 0
    begun = time.monotonic()
    process = start(data, folder / "timed")
    process.wait()
    lasts = time.monotonic() - begun # of the whole child; the training itself is shorter
    assert same(folder / "timed", whole)
    while hits < kills:
        number += 1
        run = folder / str(number)
        for _ in range(2): # twice in the same run: the second kill hits a resumed training
            process = start(data, run)
            time.sleep(chance.uniform(0, lasts * .4))
            if process.poll() is not None: break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            hits += 1
        process = start(data, run)
        assert process.wait() == 0 and same(run, whole), f"after {hits} kills"
        assert not list(run.rglob(".*")), "something half-written stayed, or the lock"
    return hits


@on_cpu
def test_killed_trainings_end_in_the_same_bits(data, whole, tmp_path):
    assert kill_and_resume(data, whole, tmp_path, kills=2) >= 2


@on_cpu
@pytest.mark.skipif("TWENTY_KILLS" not in os.environ, reason=MINUTES)
def test_twenty_kills_end_in_the_same_bits(data, whole, tmp_path):
    assert kill_and_resume(data, whole, tmp_path, kills=20) >= 20


@on_cpu
def test_a_kill_while_a_checkpoint_is_written(data, whole, tmp_path, monkeypatch):
    slices, written = ts.open_data(data, 48), []
    class Killed(BaseException): pass
    import tumorseg.core as ground
    real = os.replace
    def replace(aside, path): # the file stands beside the one that it was to replace
        written.append(path)
        if len(written) == 9: raise Killed
        real(aside, path)
    monkeypatch.setattr(ground.os, "replace", replace)
    with pytest.raises(Killed): ts.train(slices, tmp_path / "run", CONFIG, **QUIET)
    monkeypatch.undo()
    ts.train(slices, tmp_path / "run", **QUIET)
    assert same(tmp_path / "run", whole)


class Ended(BaseException): "As a kill, where no code of ours catches it."


@on_cpu
def test_a_kill_after_any_step_also_before_the_validation(data, whole, tmp_path, monkeypatch):
    import tumorseg.training.train as training
    slices, run, real = ts.open_data(data, 48), tmp_path / "run", training.save_training
    monkeypatch.setattr(training._Training, "save_after", -1) # a checkpoint after each step
    steps = max(1, len(slices.rows_of("train")) // CONFIG.batch)
    for wanted in (1, steps, steps + 2, 2 * steps): # `steps`: all of an epoch, and not yet validated
        def save(path, *rest, wanted=wanted):
            real(path, *rest)
            if rest[-1]["step"] == wanted: raise Ended
        monkeypatch.setattr(training, "save_training", save)
        with pytest.raises(Ended): ts.train(slices, run, None if wanted > 1 else CONFIG, **QUIET)
    monkeypatch.undo()
    ts.train(slices, run, **QUIET)
    assert same(run, whole)


@pytest.fixture
def heard():
    "Signals as a terminal has them: under nohup, or in the background of a shell, some are ignored."
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
              signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL)}
    yield
    for number, handler in before.items(): signal.signal(number, handler)


@on_cpu
@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_keeps_the_step_and_says_how_to_go_on(data, whole, tmp_path, name):
    process = start(data, tmp_path / "run")
    while not (tmp_path / "run" / "history.csv").exists(): time.sleep(.01)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate()
    assert process.returncode in (1, -signal.SIGINT) # a KeyboardInterrupt, which the command turns into 1
    assert "--resume" in said and "everything is kept" in said
    assert not list((tmp_path / "run").rglob(".*")), "the lock stayed"
    ts.train(ts.open_data(data, 48), tmp_path / "run", **QUIET)
    assert same(tmp_path / "run", whole)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_in_the_middle_of_an_epoch(data, tmp_path, name):
    steps, before = iter(range(10**6)), signal.getsignal(getattr(signal, name))
    def stop():
        if next(steps) == 1: os.kill(os.getpid(), getattr(signal, name)) # before the second step
    with pytest.raises(KeyboardInterrupt, match="stopped after step [12], and everything is kept"):
        ts.train(ts.open_data(data, 48), tmp_path / name, CONFIG, should_stop=stop, **QUIET)
    assert signal.getsignal(getattr(signal, name)) == before
    assert (tmp_path / name / "last/training.safetensors").exists() and not ts.Run(tmp_path / name).history.size


def test_what_nohup_ignores_stays_ignored(data, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = partial(os.kill, os.getpid(), signal.SIGHUP) # before each step
        ts.train(ts.open_data(data, 48), tmp_path / "run", replace(CONFIG, epochs=1), should_stop=hang_up, **QUIET)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally: signal.signal(signal.SIGHUP, before)
    assert len(ts.Run(tmp_path / "run").history) == 1


def test_of_two_trainings_at_the_same_moment_one_says_so(data, tmp_path):
    processes = [start(data, tmp_path / "run", "wait") for _ in range(2)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1], said
    refused = next(text for process, text in zip(processes, said) if process.returncode)
    assert f"{tmp_path / 'run'}: another process (PID" in refused
    assert len(ts.Run(tmp_path / "run").history) == CONFIG.epochs and not list((tmp_path / "run").rglob(".*"))


def test_a_full_disk_keeps_the_last_good_checkpoint(data, whole, tmp_path, monkeypatch):
    import tumorseg.training.train as training
    slices, real, run = ts.open_data(data, 48), training.save_training, tmp_path / "run"
    def full(path, *rest):
        if len(pd.read_csv(run / "history.csv") if (run / "history.csv").exists() else []) >= 2:
            raise ts.InputError(f"{path}: cannot be written (No space left on device). Free some space.")
        real(path, *rest)
    monkeypatch.setattr(training, "save_training", full)
    with pytest.raises(ts.InputError, match="No space left"): ts.train(slices, run, CONFIG, **QUIET)
    monkeypatch.undo()
    ts.train(slices, run, **QUIET)
    assert best_device().type != "cpu" or same(run, whole)


def test_other_settings_networks_or_data_are_refused_and_nothing_is_lost(data, whole):
    slices, before = ts.open_data(data, 48), (whole / "last" / "training.safetensors").read_bytes()
    other = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(ts.InputError, match="another network"): ts.train(slices, whole, network=other, **QUIET)
    with pytest.raises(ts.InputError, match="other data"): ts.train(ts.open_data(data, 32), whole, **QUIET)
    with pytest.raises(ts.InputError, match="other settings .lr"):
        ts.train(slices, whole, replace(CONFIG, lr=.1), **QUIET)
    assert (whole / "last" / "training.safetensors").read_bytes() == before


def test_early_stopping_waits_for_patience(data, tmp_path):
    config = ts.Config(epochs=50, width=4, depth=1, batch=4, lr=1e-7, patience=2)
    history = pd.read_csv(ts.train(ts.open_data(data, 48), tmp_path / "run", config, **QUIET) / "history.csv")
    assert len(history) < 50 and len(history) - 1 - history["valid_dice"].argmax() == 2


def test_a_tracker_gets_every_epoch(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    config = ts.Config(epochs=2, width=4, depth=1, batch=4)
    run = ts.train(ts.open_data(data, 48), tmp_path / "run", config, tracker="tensorboard", **QUIET)
    events = EventAccumulator(str(next(run.path.rglob("events.out*")).parent))
    events.Reload()
    logged = [event.value for event in events.Scalars("valid_dice")]
    assert np.allclose(logged, pd.read_csv(run / "history.csv")["valid_dice"], atol=1e-5)


TWO = """
import sys
import tumorseg.training.train as training
from tumorseg.training.config import Config
from tumorseg.data.sources import open_data
import tumorseg.model.inference as inference
inference.best_precision = lambda device: "no"
config = Config(precision="float32", epochs=2, width=4, depth=2, batch=6, parts=int(sys.argv[3]))
training.train(open_data(sys.argv[1], 48), sys.argv[2], config, on_epoch=lambda *_: None)
from accelerate import PartialState
assert PartialState().num_processes == int(sys.argv[4]), "not the number of processes that was asked for"
"""


@on_cpu
def test_two_processes_train_as_one(data, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"] # as accelerate launch
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for name, processes, parts in (("one", 1, 1), ("two", 2, 1)):
        words = [processes, tmp_path / "two.py", data, tmp_path / name, parts, processes]
        done = subprocess.run([*launch, *map(str, words)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "two"))
    numbers = ["train_loss", "valid_loss", "valid_dice"]
    assert np.allclose(one[numbers], two[numbers], atol=2e-3)
    weights = [load_model(tmp_path / name / "model.safetensors")[0].state_dict() for name in ("one", "two")]
    pairs = zip(weights[0].values(), weights[1].values())
    assert all(torch.allclose(a.float(), b.float(), atol=2e-3) for a, b in pairs)


def simulated(folder, count):
    "A set of `count` slices that takes no disk: sparse files of nothing, with a table."
    folder.mkdir()
    for name, shape in (("images", (count, 1, 64, 64)), ("masks", (count, 64, 64))):
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
        array[::1000] = 1
        del array
    split = np.where(np.arange(count) % 10 == 9, "valid", "train")
    columns = dict(name=[f"{i}.png" for i in range(count)], split=split, patient="", category=1, label="contour",
                   height=64, width=64)
    pd.DataFrame(columns, columns=list(TABLE)).to_csv(folder / "table.csv", index=False)
    save_json(folder / "seal.json", _seal(folder))
    return load_slices(folder)


RESIDENT = """
import sys, resource
from pathlib import Path
from torch import nn
from tumorseg.training.config import Config
from tumorseg.data.slices import load_slices
from tumorseg.training.train import train
slices, steps = load_slices(sys.argv[1]), iter(range(10**9))
import numpy as np
def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
seen = []
def stop():
    number = next(steps)
    if number % 50 == 0: seen.append(resident())
    return number == 1500
train(slices, sys.argv[2], Config(epochs=1, batch=64), nn.Conv2d(1, 1, 1), on_epoch=lambda *_: None, should_stop=stop)
print(seen[1], max(seen[1:]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from Linux's /proc")
def test_a_set_of_200_000_slices_streams(tmp_path):
    simulated(tmp_path / "set", 200_000) # 1.6 GB of pixels
    command = [sys.executable, "-c", RESIDENT, str(tmp_path / "set"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, most = map(float, done.stdout.split())
    print(f"resident after 50 steps {first:.0f} MiB, at most {most:.0f} MiB in 1500 steps over 96,000 slices")
    assert most - first < 60
