"The doctor names each cause that is planted and no other, and nothing in a healthy set or run."
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import tumorseg as ts
from tumorseg.checks.doctor import _check_history, _load, check_threshold, findings_in_words, refuse_swapped
from tumorseg.checks.symptoms import TURNS, check_geometry, check_images, check_leakage, check_masks
from tumorseg.model.checkpoint import load_model, save_model

SHARED = Path(__file__).parents[2] / "shared"
SMALL = dict(epochs=6, width=8, depth=3, batch=8)


@pytest.fixture(scope="module")
def work(tmp_path_factory): return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def folder(work): return ts.write_demo(work / "demo", patients=20, size=64)


@pytest.fixture(scope="module")
def slices(folder): return ts.open_data(folder, 64)


@pytest.fixture(scope="module")
def healthy(slices, work): return ts.train(slices, work / "healthy", ts.Config(**SMALL))


def changed(slices, images=None, masks=None, **columns):
    images, masks = slices.images if images is None else images, slices.masks if masks is None else masks
    return ts.Slices(images, masks, slices.table.assign(**columns))


def causes(*args): return [finding.cause for finding in ts.doctor(*args)]


def test_a_healthy_set_and_run_get_no_finding(slices, healthy):
    assert ts.doctor(slices) == [] and ts.doctor(slices, healthy) == []
    assert "Nothing found" in findings_in_words([])


@pytest.mark.parametrize("seed", [1, 2])
def test_other_healthy_sets_get_no_finding(seed, work):
    slices = ts.open_data(ts.write_demo(work / f"demo{seed}", patients=20, size=64, seed=seed), 64)
    for asked in (slices, changed(slices, patient="")):
        assert check_masks(asked) + check_images(asked) + check_geometry(asked) + check_leakage(asked) == []


def floats(s): return s.images / np.float32(255)
def kept(s, rows): return s.masks * np.asarray(rows, np.uint8)[:, None, None]


def classes(s): return s.masks * (1 + np.arange(len(s)) % 3).astype(np.uint8)[:, None, None]
def inverted(s, rows): return np.where(rows.to_numpy()[:, None, None, None], 255 - s.images, s.images)


DATA = {
    "0 and 255": ("masks", lambda s: changed(s, masks=s.masks * np.uint8(255))),
    "RGB": ("masks", lambda s: changed(s, masks=np.stack([s.masks] * 3, -1))),
    "three classes": ("masks", lambda s: changed(s, masks=classes(s))),
    "bool": ("masks", lambda s: changed(s, masks=s.masks > 0)),
    "empty": ("masks", lambda s: changed(s, masks=np.zeros_like(s.masks))),
    "nearly empty": ("masks", lambda s: changed(s, masks=kept(s, np.arange(len(s)) < 3))),
    "no tumour in valid": ("masks", lambda s: changed(s, masks=kept(s, s.table["split"] != "valid"))),
    "background marked": ("masks", lambda s: changed(s, masks=1 - s.masks)),
    "all black": ("images", lambda s: changed(s, np.zeros_like(s.images))),
    "floats as whole numbers": ("images", lambda s: changed(s, floats(s).astype(np.uint8))),
    "floats": ("images", lambda s: changed(s, floats(s))),
    "nearly constant": ("images", lambda s: changed(s, 120 + s.images // 32)),
    "test inverted": ("images", lambda s: changed(s, inverted(s, s.table["split"] == "test"))),
    **{name: ("geometry", lambda s, turn=turn: changed(s, masks=turn(s.masks).copy()))
       for name, (_, turn) in list(TURNS.items())[1:]},
    "moved": ("geometry", lambda s: changed(s, masks=np.roll(s.masks, (-5, 7), (1, 2)))),
    "another size": ("geometry", lambda s: changed(s, masks=s.masks[:, ::2, ::2])),
    "patients mixed": ("leakage", lambda s: s.assign(split=np.random.default_rng(0).permutation(s.table["split"]))),
}


@pytest.mark.parametrize("name", DATA)
def test_a_planted_fault_of_the_data_is_named_and_no_other(name, slices):
    cause, plant = DATA[name]
    findings = ts.doctor(plant(slices))
    assert [finding.cause for finding in findings] == [cause], findings
    [finding] = findings
    assert finding.to_do in findings_in_words(findings) and finding.evidence in findings_in_words(findings)
    assert any(map(str.isdigit, finding.evidence))


def test_masks_in_files_are_read_for_what_they_mean_or_refused(slices, tmp_path):
    from PIL import Image
    white = slices.masks * np.uint8(255)
    for kind, masks in {"bytes": white, "rgb": np.stack([white] * 3, -1), "grey": slices.masks * np.uint8(7)}.items():
        for row in range(12, 42):
            for part, pixels in (("images", slices.images[row, 0]), ("masks", masks[row])):
                (tmp_path / kind / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / kind / part / f"{row}.png")
        if kind == "grey":
            with pytest.raises(ts.InputError, match="0, 7. Save it with 0"): ts.open_data(tmp_path / kind, 64)
        else:
            read = ts.open_data(tmp_path / kind, 64)
            assert (read.masks == slices.masks[12:42]).all() and check_masks(read) == []


class Sigmoid(nn.Module):
    "A network that gives probabilities where the loss takes logits."
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Sigmoid())

    def forward(self, x): return self.body(x)


def other_weights(healthy, work, name, change):
    run = shutil.copytree(healthy, work / name)
    network, info = load_model(run / "model.safetensors")
    with torch.no_grad(): change(network)
    save_model(run / "model.safetensors", network, replace(info, threshold=.5))
    return run


def shy(network):
    network.out.weight.mul_(.3)
    network.out.bias.mul_(.3).sub_(5)


def dead(network):
    last = network.ups[-1].conv[-2]
    last.weight.zero_()
    last.bias.fill_(-1)


def loud(network): # the same answers, by numbers that fp16 does not have
    last = network.ups[-1].conv[-2]
    last.weight.mul_(1e6)
    last.bias.mul_(1e6)
    network.out.weight.mul_(1e-6)


def black(network):
    network.out.weight.mul_(.01)
    network.out.bias.fill_(-9)


RUNS = {"shy": ("threshold", shy), "dead": ("network", dead), "loud": ("half precision", loud)}


@pytest.mark.parametrize("name", RUNS)
def test_a_planted_fault_of_a_network_is_named_and_no_other(name, slices, healthy, work):
    cause, change = RUNS[name]
    run = other_weights(healthy, work, name, change)
    findings = ts.doctor(slices, run)
    assert [finding.cause for finding in findings] == [cause], findings


@pytest.mark.parametrize("rate, word", [(1e-6, "low"), (1., "high")])
def test_a_wrong_learning_rate_is_named_and_no_other(rate, word, slices, work):
    [finding] = ts.doctor(slices, ts.train(slices, work / word, ts.Config(**{**SMALL, "epochs": 3, "lr": rate})))
    assert finding.cause == "learning rate" and f"too {word}" in finding.evidence


def test_a_loss_that_was_lost_in_half_precision(slices, healthy, work, monkeypatch):
    monkeypatch.setattr("tumorseg.checks.doctor.check_rate", lambda *args: []) # its rate is sane
    run = shutil.copytree(healthy, work / "lost")
    history = pd.read_csv(run / "history.csv")
    history.loc[2:, "train_loss"] = np.nan
    history.to_csv(run / "history.csv", index=False)
    for precision, cause in (("fp16", "half precision"), ("no", "learning rate")):
        config = (run / "config.json").read_text()
        for old in ("fp16", "bf16", "no"):
            config = config.replace(f'"precision": "{old}"', f'"precision": "{precision}"')
        (run / "config.json").write_text(config)
        [finding] = ts.doctor(slices, run)
        assert finding.cause == cause and "4 of 6 epochs" in finding.evidence, finding


def test_a_set_and_a_run_without_healthy_slices(slices, work):
    tumours = slices[slices.areas > 0]
    run = ts.train(tumours, work / "tumours", ts.Config(**SMALL))
    for findings in (ts.doctor(tumours), ts.doctor(tumours, run)):
        assert [finding.cause for finding in findings] == ["healthy slices"], findings
        assert "0 of the" in findings[0].evidence and "91 %" in findings[0].evidence
        assert "--healthy FOLDER" in findings[0].to_do


def test_a_network_that_marks_healthy_slices(slices, healthy, work, monkeypatch):
    "Half of the validation slices are made healthy ones: the tumour stays in the picture, so the network finds it."
    monkeypatch.setattr("tumorseg.checks.doctor.check_threshold", lambda *args: [])  # a higher one helps a little
    valid = np.flatnonzero(slices.table["split"] == "valid")
    masks = np.array(slices.masks)
    masks[valid[:6]] = 0
    asked = changed(slices, masks=masks, label=np.where(masks.any((1, 2)), "contour", ""))
    run = shutil.copytree(healthy, work / "unspecific")
    fingerprint = asked.fingerprint()
    text = (run / "config.json").read_text().replace(ts.Run(healthy).facts["data"]["fingerprint"], fingerprint)
    (run / "config.json").write_text(text)
    asked.table.to_csv(run / "table.csv", index=False)
    [finding] = ts.doctor(asked, run)
    assert finding.cause == "specificity" and "validation slices that have none (specificity 0." in finding.evidence
    assert "of 6 validation" in finding.evidence and "of 5 that have." in finding.evidence


def test_the_threshold_is_chosen_for_healthy_slices_too():
    "A lower one would find the tumours, and mark something on each of three times as many healthy slices."
    maps, masks = np.full((40, 8, 8), .01, np.float32), np.zeros((40, 8, 8), np.uint8)
    masks[:10, :4] = 1
    maps[:10, :4], maps[10:, 0] = .1, .1
    table = pd.DataFrame(dict(name=[str(row) for row in range(40)], split="valid", patient="", category=1, label="",
                              height=8, width=8))
    valid = ts.Slices(np.zeros((40, 1, 8, 8), np.uint8), masks, table)
    assert check_threshold(maps, valid, .5) == []
    [finding] = check_threshold(maps[:10], valid[:10], .5)  # without them it is right to lower it
    assert "tumorseg threshold RUN 0.0" in finding.to_do and "0 of them without tumour" in finding.evidence
    maps[10:, 0] = .01
    [finding] = check_threshold(maps, valid, .5)
    assert "40 slices, 30 of them without tumour, is 0.75" in finding.evidence and "would be 1.00" in finding.evidence


def test_data_and_run_the_wrong_way_round(slices, folder, healthy):
    with pytest.raises(ts.UsageError, match="slices first"): ts.doctor(healthy, slices)
    with pytest.raises(ts.UsageError, match="is a run. The data comes first: tumorseg doctor"):
        refuse_swapped(healthy, folder)
    refuse_swapped(folder, healthy)


def test_old_libraries_are_told(slices, monkeypatch):
    monkeypatch.setattr("tumorseg.checks.doctor.version", {"pillow": "11.3.0", "torch": "2.5.1", "monai": "1.6.0"}.get)
    [finding] = ts.doctor(slices)
    assert finding.cause == "versions" and "torch 2.5.1 is older than 2.6.0" in finding.evidence
    assert "pillow" in finding.evidence and "monai" not in finding.evidence


def test_a_run_of_damaged_files_is_a_finding_whatever_is_damaged(slices, healthy, work):
    "Each value of history, table and description in turn is something else, or gone."
    random, run = np.random.default_rng(0), shutil.copytree(healthy, work / "fuzzed")
    whole = {name: (run / name).read_bytes() for name in ("history.csv", "table.csv", "config.json")}
    odd = [b"", b"null", b"-1", b"1e400", b"nan", b"{}", b"[]", b'"', b"\xff\xfe", b"text", b",", b"\n", b"9" * 400]
    for name, content in whole.items():
        for _ in range(8):
            start = int(random.integers(len(content)))
            end = start + int(random.integers(1, 30))
            (run / name).write_bytes(content[:start] + odd[random.integers(len(odd))] + content[end:])
            network, _, findings = _load(ts.Run(run), slices, None)
            if network is None: assert [finding.cause for finding in findings] == ["run"]
            else: assert isinstance(_check_history(ts.Run(run), slices), list)
        (run / name).write_bytes(content)


def test_a_network_of_ones_own(slices, work):
    torch.manual_seed(0)
    sick = {"frozen": Sigmoid().body[:3].requires_grad_(False), "0 to 1": Sigmoid(),
            "(4, 2, 64, 64)": nn.Conv2d(1, 2, 1), "fails": nn.Conv2d(3, 1, 1)}
    for word, network in sick.items():
        before = {name: value.clone() for name, value in network.state_dict().items()}
        [finding] = ts.doctor(slices, network=network)
        assert finding.cause == "network" and word in finding.evidence, finding
        untouched = all((value == before[name]).all() for name, value in network.state_dict().items())
        assert untouched, "it was trained, not a copy"
    run = ts.train(slices, work / "own", ts.Config(epochs=2, batch=8), Sigmoid())
    assert causes(slices, run, Sigmoid()) == ["network"]
    [finding] = ts.doctor(slices, run)  # without the network it cannot be loaded
    assert finding.cause == "run" and "Sigmoid" in finding.evidence


def test_a_run_that_does_not_fit_is_a_finding(slices, folder, healthy, work):
    assert causes(slices, work / "nowhere") == ["run"]
    unfinished = shutil.copytree(healthy, work / "unfinished")
    (unfinished / "history.csv").unlink()
    assert "not finished an epoch" in ts.doctor(slices, unfinished)[0].evidence
    damaged = {"history.csv": ("", "epoch\n1\n"), "config.json": ("{", "[]", "{}"), "table.csv": ("name\n",),
               "model.safetensors": ("no model",)}
    for name, text in ((name, text) for name, texts in damaged.items() for text in texts):
        broken = shutil.copytree(healthy, work / f"broken{name}{len(text)}{text[:1]}")
        (broken / name).write_text(text)
        assert causes(slices, broken) == ["run"], (name, text)
    [finding] = ts.doctor(ts.open_data(folder, 48), healthy)
    assert finding.cause == "run" and "(1, 64, 64)" in finding.evidence and "size 64" in finding.to_do
    rgb = changed(slices, np.repeat(slices.images, 3, 1))
    assert causes(rgb, healthy) == ["run"]
    other = ts.open_data(work / "demo1", 64) if (work / "demo1").exists() else slices[:60]
    assert causes(other, healthy) == ["run"] and "other slices" in ts.doctor(other, healthy)[0].evidence
    assert causes(changed(slices, 255 - slices.images), healthy) == ["images"]


def test_black_pictures_without_any_other_fault_are_a_short_training(slices, healthy, work):
    findings = ts.doctor(slices, other_weights(healthy, work, "black", black))
    assert [finding.cause for finding in findings] in (["training"], ["threshold"]) and "black" in findings[0].evidence


@pytest.fixture(scope="module")
def kaggle():
    if not SHARED.is_dir(): pytest.skip("the real data sets are not beside the project (../shared)")
    return ts.open_data(SHARED / "data/kaggle", 128)


def test_nothing_but_leakage_is_wrong_with_the_kaggle_set(kaggle):
    start = time.perf_counter()
    findings = ts.doctor(kaggle)
    print(f"doctor of {len(kaggle)} slices: {time.perf_counter() - start:.1f} s")
    assert [finding.cause for finding in findings] == ["leakage", "healthy slices"], findings
    for _, turn in (TURNS["transposed"], TURNS["mirrored left to right"]): # boxes, and no patients known
        assert check_geometry(changed(kaggle, masks=turn(np.asarray(kaggle.masks)).copy()))
