"""Whole trainings: killed and resumed, and what half precision does to one."""
import json
import os
import shutil
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
from safetensors import safe_open
from safetensors.torch import load_file, save

import tumorseg as ts
from tumorseg.core import UsageError, save_table
from tumorseg.model.checkpoint import load_model
from tumorseg.model.inference import best_device
from tumorseg.training.run import start_run

CONFIG = ts.Config(epochs=6, width=4, depth=2, batch=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ts.write_demo(tmp_path_factory.mktemp("data") / "demo", patients=8, size=64)


def weights(run):
    return load_model(run / "model.safetensors")[0].state_dict()


@pytest.mark.skipif(best_device().type != "cpu", reason="bit-identical on the CPU")
def test_a_killed_training_goes_on_to_the_same_bits(data, tmp_path):
    slices = ts.open_data(data, 48)
    ts.train(slices, tmp_path / "whole", CONFIG)
    code = ("import sys; from tumorseg import Config, open_data, train\n"
            f"train(open_data(sys.argv[1], 48), sys.argv[2], {CONFIG!r})")
    command = [sys.executable, "-c", code, str(data), str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    history = tmp_path / "killed" / "history.csv"
    while process.poll() is None and not (history.exists() and len(pd.read_csv(history)) >= 2): time.sleep(.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 2 <= len(pd.read_csv(history)) < 6, "it was to be killed in the middle"
    ts.train(slices, tmp_path / "killed")
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all((ours[name] == theirs[name]).all() for name in ours)
    columns = ["epoch", "train_loss", "valid_loss", "valid_dice", "lr"]
    assert pd.read_csv(history)[columns].equals(pd.read_csv(tmp_path / "whole" / "history.csv")[columns])


def test_a_seed_gives_one_training_and_another_seed_another(data, tmp_path):
    slices, short = ts.open_data(data, 48), replace(CONFIG, epochs=1)
    torch.manual_seed(99)  # what the user's own code did before must not matter
    runs = [ts.train(slices, tmp_path / str(number), replace(short, seed=seed))
            for number, seed in enumerate((0, 0, 1))]
    first, again, other = map(weights, runs)
    assert all((first[name] == again[name]).all() for name in first)
    assert not all((first[name] == other[name]).all() for name in first)


def test_half_precision_trains_as_float32_does(data, tmp_path):
    slices, config = ts.open_data(data, 48), ts.Config(epochs=3, width=8, depth=2, batch=4, lr=1e-2)
    losses = {}
    for name in ("bfloat16", "float32", *(["float16"] if best_device().type != "mps" else [])):
        run = ts.train(slices, tmp_path / name, replace(config, precision=name), on_epoch=lambda *_: None)
        losses[name] = run.history["train_loss"].to_numpy()
        assert run.config.precision == name
        assert run.facts["precision"] == {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}[name]
    single = losses.pop("float32")
    for half in losses.values():
        assert np.isfinite(half).all() and np.abs(half - single).max() < .1, losses
        assert not np.array_equal(half, single), "both ran in the same precision"


@pytest.mark.skipif(best_device().type != "cpu", reason="bit-identical on the CPU")
def test_the_scale_of_float16_is_kept(data, tmp_path, monkeypatch, capsys):
    slices, config = ts.open_data(data, 48), replace(CONFIG, epochs=2, precision="float16")
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.**40, growth_interval=3))
    whole = ts.train(slices, tmp_path / "whole", config)
    said = capsys.readouterr().err
    assert "trains on cpu in float16, 2 epochs of" in said.splitlines()[0]
    assert whole.history["skipped"][0] > 0 and "left out while float16 looks for its scale" in said
    steps = iter(range(10**6))
    ts.train(slices, tmp_path / "stopped", config, should_stop=lambda: next(steps) == 5)
    assert 0 < state(tmp_path / "stopped")["scaler"]["scale"] < 2**40
    ts.train(slices, tmp_path / "stopped")
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert state(tmp_path / "whole")["scaler"] == state(tmp_path / "stopped")["scaler"]


def test_a_precision_that_the_device_does_not_have_is_one_sentence(data, tmp_path, monkeypatch):
    slices, run = ts.open_data(data, 48), tmp_path / "run"
    def autocast(*_): raise RuntimeError("no bfloat16\nhere")
    monkeypatch.setattr("tumorseg.training.loop.autocast", autocast)
    with pytest.raises(ts.InputError, match="precision is bfloat16, which .* does not have here .no bfloat16.*auto"):
        ts.train(slices, run, replace(CONFIG, precision="bfloat16"))
    assert not run.exists()


# ---- the folder of a run that somebody changed

def state(run):
    with safe_open(run / "last/training.safetensors", "pt") as file: return json.loads(file.metadata()["tumorseg"])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run = ts.train(ts.open_data(data, 48), tmp_path_factory.mktemp("finished") / "run", replace(CONFIG, epochs=1),
                   on_epoch=lambda *_: None)
    columns = dict(tp=1, fp=2, fn=3, dice=.5, hd95="")
    save_table(run / "slices.csv", run.table.assign(**columns))
    return run.path


@pytest.fixture
def changed(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_an_old_run_without_a_precision_goes_on(data, changed):
    facts = json.loads((changed / "config.json").read_text())
    del facts["config"]["precision"]
    (changed / "config.json").write_text(json.dumps(facts))
    assert len(ts.train(ts.open_data(data, 48), changed).history) == 1


WRONG_CONFIGS = [("lr", 30), ("lr", None), ("batch", "8"), ("width", 512), ("precision", "half"), ("surprise", 1),
                 ("degrees", [1]), ("epochs", 10**400)]


@pytest.mark.parametrize("name, value", WRONG_CONFIGS, ids=[f"{name} {value!r}"[:20] for name, value in WRONG_CONFIGS])
def test_a_wrong_setting_names_its_file(changed, name, value):
    facts = json.loads((changed / "config.json").read_text())
    facts["config"][name] = value
    if name == "width": facts["config"]["depth"] = 7
    (changed / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ts.InputError, match=f"config.json: .*{name}") as found: _ = ts.Run(changed).config
    assert not isinstance(found.value, UsageError), "the file is wrong, not the call: exit 1"


@pytest.mark.parametrize("facts", [{}, {"config": {}}, {"config": {}, "size": "x"}, {"config": {}, "size": 48},
                                   {"config": {}, "size": 48, "data": []}, {"config": [], "size": 48, "data": {}}, []])
def test_a_description_that_is_none_is_one_sentence(changed, facts):
    (changed / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ts.InputError, match="config.json: "): _ = ts.Run(changed).size


HEAD = "epoch,train_loss,valid_loss,valid_dice,lr,seconds,slices_per_second\n"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "epoch\n1\n", '"', "\0", f"{HEAD}1,1,1,x,1,1,1\n",
                                  f"{HEAD}1,1,1,2,1,1,1\n", f"{HEAD}1,1,1,.5,1,1,1\n1,1,1,.5,1,1,1\n"])
def test_a_history_that_is_none_is_one_sentence(changed, text):
    (changed / "history.csv").write_text(text)
    with pytest.raises(ts.InputError, match="history.csv: is not a history"): _ = ts.Run(changed).history


@pytest.mark.parametrize("column, value", [("dice", -1), ("dice", 1.5), ("dice", "x"), ("dice", np.nan), ("tp", "many"),
                                           ("tp", np.inf), ("height", "tall"), ("category", 10**30), ("name", "a.png"),
                                           ("fn", None)])
def test_scores_that_are_none_are_one_sentence(changed, column, value):
    scores = ts.Run(changed).scores
    table = scores.assign(**{column: value}) if value is not None else scores.drop(columns=column)
    table.to_csv(changed / "slices.csv", index=False)
    with pytest.raises(ts.InputError, match="slices.csv: is not a table of scores"): _ = ts.Run(changed).scores


def test_names_patients_and_further_columns_survive_the_table(data, tmp_path):
    slices = ts.open_data(data, 48)
    names = [f"{'=-+@'[number % 4]}{number}\t,\"'.png" for number in range(len(slices))]
    slices = slices.assign(name=names, patient=[f"'-{number // 3}" for number in range(len(slices))],
                           view=["007", "", "1.0", "NA", *[""] * (len(slices) - 4)], source="=healthy")
    start_run(slices, tmp_path / "run", CONFIG, ts.UNet(1, 4, 2))
    run = ts.Run(tmp_path / "run")
    assert run.table.astype(object).equals(slices.table.astype(object)) and run.knows(slices)
    assert run.slices(slices).table["view"].tolist() == slices.table["view"].tolist()


def test_two_slices_of_one_name_are_refused_before_they_are_trained_on(data, tmp_path):
    with pytest.raises(ts.InputError, match="Two slices have the name 'a.png'"):
        ts.train(ts.open_data(data, 48).assign(name="a.png"), tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def wrong_state(**changes):
    def change(facts): return {**facts, **changes}
    return change


@pytest.mark.parametrize("change", [lambda facts: [], lambda facts: "x", lambda facts: {}, wrong_state(history={}),
                                    wrong_state(history=[{}]), wrong_state(history=["x"]), wrong_state(step="3"),
                                    wrong_state(step=-1), wrong_state(step=10**9), wrong_state(step=True),
                                    wrong_state(parts=0), wrong_state(loss=float("nan")), wrong_state(skipped=None),
                                    wrong_state(history=[{"epoch": 1, "valid_dice": "best"}])])
def test_the_state_of_a_training_that_is_none_is_one_sentence(data, changed, change):
    path = changed / "last/training.safetensors"
    path.write_bytes(save(load_file(path), {"tumorseg": json.dumps(change(state(changed)))}))
    with pytest.raises(ts.InputError, match="training.safetensors: is not "):
        ts.train(ts.open_data(data, 48), changed, on_epoch=lambda *_: None)


def test_a_network_that_no_memory_holds_is_refused_before_it_is_built(data, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="width 512 and depth 4 are 8192 channels"): ts.Config(width=512, depth=4)
    def build(*_): raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 40 GB")
    monkeypatch.setattr("tumorseg.training.train.UNet", build)
    with pytest.raises(ts.InputError, match="does not fit into memory: give a smaller --width"):
        ts.train(ts.open_data(data, 48), tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_any_network_trains(data, tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1))
    run = ts.train(ts.open_data(data, 48), tmp_path / "own", ts.Config(epochs=1, batch=4), network)
    with pytest.raises(ts.InputError, match="Sequential"): load_model(run / "model.safetensors")


def test_a_missing_split_is_said_before_anything_is_written(data, tmp_path):
    slices = ts.open_data(data, 48)
    only_train = slices[slices.table["split"] == "train"]
    with pytest.raises(ts.InputError, match="valid"): ts.train(only_train, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_three_channels_train(tmp_path):
    rng = np.random.default_rng(0)
    names, split = [f"{number}" for number in range(8)], ["train"] * 6 + ["valid"] * 2
    table = pd.DataFrame(dict(name=names, split=split, patient="", category=1, label="contour", height=32, width=32))
    images = rng.integers(0, 255, (8, 3, 32, 32)).astype(np.uint8)
    masks = rng.integers(0, 2, (8, 32, 32)).astype(np.uint8)
    slices = ts.Slices(images, masks, table)
    run = ts.train(slices, tmp_path / "rgb", ts.Config(epochs=1, width=4, depth=2, batch=2))
    assert load_model(run / "model.safetensors")[0].settings["channels"] == 3
