"""Whole trainings: killed and resumed, and what half precision does to one."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import tumorseg as ts
from tumorseg.model.checkpoint import load_model
from tumorseg.model.inference import best_device, best_precision

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


@pytest.mark.skipif(best_precision(best_device()) == "no", reason="this hardware has no fast half precision")
def test_mixed_precision_trains_as_float32_does(data, tmp_path, monkeypatch):
    slices, config = ts.open_data(data, 48), ts.Config(epochs=4, width=8, depth=2, batch=4, lr=1e-2)
    losses = {}
    for name in (best_precision(best_device()), "no"):
        monkeypatch.setattr("tumorseg.training.train.best_precision", lambda device, name=name: name)
        losses[name] = ts.train(slices, tmp_path / name, config).history["train_loss"].to_numpy()
    half, single = losses.values()
    assert np.isfinite(half).all() and np.abs(half - single).max() < .1, (half, single)
    assert not np.array_equal(half, single), "both ran in the same precision"


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
