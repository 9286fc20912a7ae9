"""Searches: killed and resumed, shared by two processes, failing trials, a budget that ends; the test split unread."""
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from optuna import Trial

import tumorseg as ts
import tumorseg.tuning.tune
from tumorseg.training.config import load_config
from tumorseg.tuning import study
from tumorseg.tuning.tune import file_dice

SMALL = ts.Config(epochs=4, width=4, depth=2, batch=4, ema=.5)
SPACE = {"lr": (1e-3, 3e-2, "log"), "rotation_p": (0., 1.)}
KEYS = ["stage", "trial"]

# A process that searches, and writes down each training that it begins.
# Where HANG names a trial, it waits for ever after that trial's first epoch.
CHILD = """
import os, sys, time
from pathlib import Path
import tumorseg.tuning.tune
from tumorseg.training.config import Config
from tumorseg.data.sources import open_data
data, out, storage, log, trials, kind = sys.argv[1:]
sys.path.insert(0, TESTS)
if kind == "stub":
    from test_tune import kept, stub
    tumorseg.tuning.tune.train, tumorseg.tuning.tune._kept_dice = stub(), kept
own = tumorseg.tuning.tune.train
def noted(slices, run, *args, on_epoch, should_stop):
    kind = "resume" if (run / "config.json").exists() else "train"
    with open(log, "a") as file: file.write(f"{os.getpid()} {kind} {run.name}\\n")
    def slow(*now):
        on_epoch(*now)
        if os.environ.get("HANG") == run.name:
            Path(log + ".hangs").touch()
            time.sleep(600)
        time.sleep(.1)
    return own(slices, run, *args, on_epoch=slow, should_stop=should_stop)
tumorseg.tuning.tune.train = noted
Path(f"{log}.ready.{os.getpid()}").touch()
while not Path(log + ".go").exists(): time.sleep(.01)
tumorseg.tuning.tune.tune(lambda size: open_data(data, size), out, int(trials), storage=storage or None,
                          space=SPACE, start=SMALL, size=32)
""".replace("SPACE", repr(SPACE)).replace("SMALL", repr(SMALL)).replace("TESTS", repr(str(Path(__file__).parent)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ts.write_demo(tmp_path_factory.mktemp("data") / "demo", patients=8, size=48)


def search(data, out, log, trials, storage="", kind="real", **environment):
    command = [sys.executable, "-c", CHILD, data, out, storage, log, trials, kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition, *processes):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        for process in processes: assert process.poll() is None, process.stderr.read()
        time.sleep(.01)


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def begun(log):
    return pd.read_csv(log, sep=" ", names=["process", "kind", "run"])


def test_a_killed_search_loses_nothing_and_repeats_nothing(data, tmp_path):
    out, log = tmp_path / "search", f"{tmp_path}/log"
    Path(log + ".go").touch()
    killed = search(data, out, log, 8, HANG="cheap-0002")
    wait_for(Path(log + ".hangs").exists, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = pd.read_csv(out / "trials.csv")
    assert before["state"].tolist() == ["complete", "complete"]
    written = {path: path.stat().st_mtime_ns for path in out.glob("trials/cheap-000[01]/*")}
    finish(search(data, out, log, 8))
    after = pd.read_csv(out / "trials.csv")
    columns = [*KEYS, "state", "valid_dice", *SPACE]
    pd.testing.assert_frame_equal(after[columns].merge(before[KEYS], on=KEYS), before[columns])
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert after["state"].isin(("complete", "pruned")).sum() == 8 and after["state"].tolist().count("killed") == 1
    dead, again = after[after["state"] == "killed"].iloc[0], after[after["before"].notna()].iloc[0]
    assert dead["trial"] == again["before"] == 2 and dead["lr"] == again["lr"] and again["epochs"] == 3
    calls = begun(log)  # the dead trial's epoch was not trained again, and no other run was begun twice
    resumed = calls[calls["kind"] == "resume"]["run"].tolist()
    assert calls["run"].is_unique and resumed == [f"cheap-{again['trial']:04d}"]
    finished = after[after["state"].isin(("complete", "pruned"))]
    assert finished.groupby("stage")["lr"].apply(lambda rates: rates.is_unique).all()
    assert after.query("start")["stage"].tolist() == ["cheap", "full"] and (after.query("start")["trial"] == 0).all()


@pytest.mark.parametrize("storage", ["", "shared.db"])
def test_two_processes_share_a_search(data, tmp_path, storage):
    log, storage = f"{tmp_path}/log", storage and f"sqlite:///{tmp_path}/{storage}"
    outs = [tmp_path / "one", tmp_path / ("two" if storage else "one")]
    both = [search(data, out, log, 12, storage, kind="stub") for out in outs]
    wait_for(lambda: len(list(tmp_path.glob("log.ready.*"))) == 2, *both)
    Path(log + ".go").touch()
    for process in both: finish(process)
    calls, tables = begun(log), [pd.read_csv(out / "trials.csv") for out in outs]
    # who ended last has seen all
    table = max(tables, key=lambda table: table["state"].isin(("complete", "pruned")).sum())
    assert calls["run"].is_unique and calls["process"].nunique() == 2, calls
    assert len(table) == len(calls) and table["state"].isin(("complete", "pruned")).all()
    assert set(calls["run"]) == {path.name for out in outs for path in (out / "trials").iterdir()}
    assert table.groupby("stage")["lr"].apply(lambda rates: rates.is_unique).all()
    assert not table.query("stage == 'full'")["of"].duplicated().any()
    assert 11 <= len(table) <= 13  # two who take the last trial at once may overshoot by one, or find no candidate yet


class Watched:
    "An array that remembers which of its rows were read."
    def __init__(self, array): self.array, self.read, self.shape = array, set(), array.shape
    def __len__(self): return len(self.array)
    def __getitem__(self, rows):
        self.read |= set(np.atleast_1d(np.arange(len(self.array))[rows]).tolist())
        return self.array[rows]


def test_the_test_split_is_never_read(data, tmp_path, monkeypatch):
    watched, seen = [], set()
    def open_at(size):
        slices = ts.open_data(data, size)
        watched.extend((Watched(slices.images), Watched(slices.masks)))
        return ts.Slices(*watched[-2:], slices.table)
    own = tumorseg.tuning.tune.train
    def noted(slices, *args, **calls):
        seen.update(slices.table["name"])
        return own(slices, *args, **calls)
    monkeypatch.setattr(tumorseg.tuning.tune, "train", noted)
    best = ts.tune(open_at, tmp_path / "search", 4, space={**SPACE, "size": [32, 48]}, start=SMALL, size=32)
    table = ts.open_data(data, 32).table
    test = set(np.flatnonzero(table["split"] == "test"))
    assert test and all(each.read and not each.read & test for each in watched)
    assert seen == set(table["name"][table["split"] != "test"])
    config, size = load_config(tmp_path / "search/best.json")
    assert size in (32, 48) and config.epochs == SMALL.epochs and best["trial"] is not None
    assert best["scored_at"] == "model"  # slices made in memory have no files


def stub(score=lambda config: 1 - abs(np.log10(config.lr / 4e-3)), epoch=lambda: None):
    "A training that takes no time and whose Dice is known; `epoch` is called in each."
    def train(slices, run, config, on_epoch, should_stop):
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(dict(config=config.__dict__)))
        history = pd.read_csv(run / "history.csv").to_dict("records") if (run / "history.csv").exists() else []
        while len(history) < config.epochs and not should_stop():
            epoch()
            done = len(history) + 1
            history.append(dict(epoch=done, train_loss=1., valid_dice=score(config) * done / config.epochs))
            pd.DataFrame(history).to_csv(run / "history.csv", index=False)
            on_epoch(history, None, None)
    return train


def kept(run, *slices):
    "The Dice that a training of `stub` has reached."
    return float(pd.read_csv(run / "history.csv")["valid_dice"].max())


@pytest.fixture()
def fake(monkeypatch):
    monkeypatch.setattr(tumorseg.tuning.tune, "_kept_dice", kept)
    return lambda train: monkeypatch.setattr(tumorseg.tuning.tune, "train", train)


def test_a_search_beats_a_bad_start_and_says_so_where_it_does_not(data, tmp_path, fake):
    fake(stub())
    open_at = lambda size: ts.open_data(data, size)
    found = ts.tune(open_at, tmp_path / "bad", 14, space=SPACE, start=ts.Config(lr=.02), size=32)
    assert found["better"] and abs(np.log10(found["config"]["lr"] / 4e-3)) < .3
    none = ts.tune(open_at, tmp_path / "good", 6, space=SPACE, start=ts.Config(lr=4e-3), size=32)
    assert not none["better"] and none["trial"] == 0
    assert json.loads((tmp_path / "good/best.json").read_text())["scored_at"] == "file"
    assert load_config(tmp_path / "good/best.json") == (ts.Config(lr=4e-3), 32)
    again = ts.tune(open_at, tmp_path / "again", 14, space=SPACE, start=ts.Config(lr=.02), size=32)
    assert again == found  # the seed makes the search
    ts.tune(open_at, tmp_path / "other", 4, space=SPACE, start=ts.Config(lr=.02), size=32, seed=1)
    first, other = (pd.read_csv(tmp_path / name / "trials.csv")["lr"] for name in ("bad", "other"))
    assert first[0] == other[0] and first[1] != other[1]


def test_a_start_outside_the_space_is_still_trial_0(data, tmp_path, fake):
    fake(stub())
    ts.tune(lambda size: ts.open_data(data, size), tmp_path / "search", 6, space=SPACE, start=ts.Config(lr=.5), size=32)
    table = pd.read_csv(tmp_path / "search/trials.csv")
    assert (table.query("start")["lr"] == .5).all() and table.query("start")["trial"].tolist() == [0, 0]
    assert table.query("not start")["lr"].between(1e-3, 3e-2).all()


def test_a_failing_trial_is_recorded_and_five_in_a_row_end_the_search(data, tmp_path, fake):
    train = stub()
    def breaks(slices, run, config, **calls):
        if run.name in ("cheap-0001", "cheap-0003", "full-0001"): raise RuntimeError("CUDA out of memory")
        return train(slices, run, config, **calls)
    fake(breaks)
    open_at = lambda size: ts.open_data(data, size)
    found = ts.tune(open_at, tmp_path / "some", 12, space=SPACE, start=ts.Config(), size=32)
    table = pd.read_csv(tmp_path / "some/trials.csv")
    assert table["state"].tolist().count("failed") == 3 and len(table) == 12
    assert table["error"].str.contains("out of memory").sum() == 3
    assert found["trial"] in (0, 2)
    def never(*_, **__): raise RuntimeError("no such device")
    fake(never)
    with pytest.raises(ts.InputError, match="last 5 trials failed.*no such device"):
        ts.tune(open_at, tmp_path / "all", 12, space=SPACE, start=ts.Config(), size=32)
    assert len(pd.read_csv(tmp_path / "all/trials.csv")) >= 4


class Clock:
    "A clock that goes only when it is told to: the wall clock may go backwards, the monotonic one does not."
    def __init__(self): self.running, self.wall = 1e6, 1.7e9
    def monotonic(self): return self.running
    def time(self): return self.wall
    def go(self, running, wall):
        self.running += running
        self.wall += wall


def test_a_trial_that_runs_when_the_time_is_over_is_stopped_and_gone_on_with(data, tmp_path, fake, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(tumorseg.tuning.tune, "time", clock)
    fake(stub(epoch=lambda: clock.go(.4, .4)))
    out, start, open_at = tmp_path / "search", ts.Config(epochs=16), lambda size: ts.open_data(data, size)
    best = ts.tune(open_at, out, seconds=1, space=SPACE, start=start, size=32)
    table = pd.read_csv(out / "trials.csv")
    assert table["state"].tolist() == ["stopped"] and table["epochs"][0] == 3 and best["trial"] is None
    fake(stub())
    ts.tune(open_at, out, 4, space=SPACE, start=start, size=32)
    after = pd.read_csv(out / "trials.csv")
    assert after["state"].tolist().count("complete") == 4 and after.query("before == 0")["epochs"].tolist() == [4]
    assert not (out / "trials/cheap-0000").exists()


@pytest.mark.parametrize("wrong", [dict(space={"learning_rate": (0, 1)}), dict(space={"lr": (.1, .01)}),
                                   dict(space={"lr": (1, 100)}), dict(space={"batch": [4, "8"]}), dict(trials=None),
                                   dict(trials=2), dict(trials=None, seconds=-1), dict(storage="shared.journal")])
def test_a_wrong_search_is_refused_before_the_data_is_opened(tmp_path, wrong):
    def never(size): raise AssertionError("opened")
    with pytest.raises(ts.UsageError) as caught:
        ts.tune(never, tmp_path / "search", **{"trials": 8, "space": SPACE, **wrong})
    assert "\n" not in str(caught.value) and not (tmp_path / "search").exists()


def test_a_dice_is_that_of_the_files_at_whatever_size_the_model_works(data):
    "The file is 48 px: a perfect map of 16 px and one of 48 px are held against the same contour."
    sizes = {size: ts.open_data(data, size).in_split("valid") for size in (16, 48)}
    small, large = (slices.masks.astype(np.float32) for slices in sizes.values())
    assert (file_dice(large, sizes[48], .5) == 1).all() and (file_dice(large, sizes[16], .5) == 1).all()
    coarse = file_dice(small, sizes[16], .5)
    assert (coarse == file_dice(small, sizes[48], .5)).all() and .3 < coarse[sizes[16].areas > 0].mean() < .95
    memory = replace(sizes[48], truth=None)  # without files, at the size of the slices that are given
    assert (file_dice(large, memory, .5) == 1).all() and file_dice(small, memory, .5).shape == (len(memory),)


def test_a_damaged_storage_ends_in_one_sentence(data, tmp_path, fake):
    "A value or a row of the database is gone or another one: the search goes on or says so, without a traceback."
    fake(stub())
    open_at, out = lambda size: ts.open_data(data, size), tmp_path / "search"
    ts.tune(open_at, out, 4, space=SPACE, start=SMALL, size=32)
    random, refused = np.random.default_rng(0), 0
    for number in range(6):
        broken = tmp_path / f"broken{number}"
        shutil.copytree(out, broken)
        with closing(sqlite3.connect(broken / "search.db")) as database, database:
            tables = [f"trial_{kind}" for kind in ("params", "values", "user_attributes")]
            table = [*tables, "study_user_attributes", "studies", "trials"][number % 6]
            rows = [row for row, in database.execute(f"SELECT rowid FROM {table}")]
            row = int(random.choice(rows))
            names = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")]
            try:
                if number % 3 == 0: database.execute(f"DELETE FROM {table} WHERE rowid = ?", [row])
                else:
                    odd = ["null", "[]", '"text"'][number % 3]
                    database.execute(f"UPDATE {table} SET {names[-1]} = ? WHERE rowid = ?", [odd, row])
            except sqlite3.IntegrityError: continue
        try: ts.tune(open_at, broken, 6, space=SPACE, start=SMALL, size=32)
        except ts.InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(broken) in str(error), error
    assert refused


def test_a_search_in_a_folder_that_cannot_be_written(data, tmp_path, fake):
    fake(stub())
    (tmp_path / "file").touch()
    with pytest.raises(ts.InputError, match="file"):
        ts.tune(lambda size: ts.open_data(data, size), tmp_path / "file/search", 4, space=SPACE, start=SMALL, size=32)
    with pytest.raises(ts.InputError, match="cannot be written"):
        ts.tune(lambda size: ts.open_data(data, size), tmp_path / "file/search", 4,
                storage=f"sqlite:///{tmp_path}/elsewhere.db", space=SPACE, start=SMALL, size=32)


def test_locks_of_killed_processes_are_removed_and_those_of_others_kept(tmp_path):
    with study.at_work(tmp_path) as living:
        dead, foreign = tmp_path / f"{study._HOST}-0123.lock", tmp_path / "another-host-0123.lock"
        dead.touch()
        foreign.touch()
        with study.at_work(tmp_path) as second:
            assert {path.name for path in tmp_path.iterdir()} == {
                Path(living["lock"]).name, Path(second["lock"]).name, foreign.name}
            assert study._is_alive(living, 0) and study._is_alive(second, 0)
    assert [path.name for path in tmp_path.iterdir()] == [foreign.name] and not study._is_alive(living, 0)


def test_another_machine_is_judged_by_its_signs_and_not_by_its_clock(monkeypatch):
    now = [1e6]
    monkeypatch.setattr(study.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(study, "_SEEN", {})
    behind, facts = time.time() - 7200, dict(host="another", lock="there")  # its clock is two hours slow
    for minute in range(30):
        now[0] += 60
        assert study._is_alive(facts, behind + 60 * minute)
    now[0] += study._WATCHED + 1
    assert not study._is_alive(facts, behind + 60 * 29)  # no sign for ten minutes
    assert study._is_alive(facts, behind + 60 * 40)


def test_a_clock_that_is_set_back_does_not_silence_a_trial(data, tmp_path, fake, monkeypatch):
    "It gives its sign each minute of the monotonic clock; the wall clock goes backwards here."
    clock = Clock()
    monkeypatch.setattr(tumorseg.tuning.tune, "time", clock)
    signs, own = [], Trial.set_user_attr
    def noted(trial, key, value):
        if key == "seen": signs.append(value)
        own(trial, key, value)
    monkeypatch.setattr(Trial, "set_user_attr", noted)
    fake(stub(epoch=lambda: clock.go(61, -3600)))
    ts.tune(lambda size: ts.open_data(data, size), tmp_path / "search", 4, space=SPACE, start=SMALL, size=32)
    assert len(signs) > 8
