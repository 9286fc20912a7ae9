"""Cross-validations that fail, are stopped and go on; a report that meets hostile names and missing files."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pandas as pd
import pytest

import tumorseg as ts
from tumorseg.data.splits import choose_folds
from tumorseg.evaluation import cross_validation
from tumorseg.evaluation.cross_validation import _environment, pool_folds

CONFIG = ts.Config(epochs=2, width=4, depth=2, batch=4)
HOSTILE = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ts.write_demo(tmp_path_factory.mktemp("data") / "demo", patients=8, size=64)


@pytest.fixture(scope="module")
def slices(data):
    return ts.open_data(data, 32)


@pytest.fixture(scope="module")
def done(slices, tmp_path_factory):
    out = tmp_path_factory.mktemp("cv") / "one after another"
    ts.cross_validate(slices, out, CONFIG, choose_folds(slices, count=3))
    return out


def test_side_by_side_gives_what_one_after_another_gives(slices, done, tmp_path):
    ts.cross_validate(slices, tmp_path / "cv", CONFIG, choose_folds(slices, count=3), at_once=2)
    columns = ["epoch", "train_loss", "valid_loss", "valid_dice"]
    for fold in (1, 2, 3):  # another number of threads may add up in another order
        ours, theirs = (pd.read_csv(out / f"fold_{fold}/history.csv")[columns] for out in (tmp_path / "cv", done))
        pd.testing.assert_frame_equal(ours, theirs, atol=2e-2)
    assert {path.name for path in (tmp_path / "cv").iterdir()} == {path.name for path in done.iterdir()}


def test_every_slice_is_scored_once_without_its_patient(slices, done):
    pooled = pd.read_csv(done / "slices.csv")
    assert sorted(pooled["name"]) == sorted(slices.table["name"])
    for fold, part in pooled.groupby("fold"):
        table = pd.read_csv(done / f"fold_{fold}/table.csv")
        assert not set(part["patient"]) & set(table["patient"][table["split"] != "test"])


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_failing_fold_is_told_and_the_others_go_on(slices, done, tmp_path, at_once):
    out = tmp_path / "cv"
    shutil.copytree(done, out)
    (out / "metrics.json").unlink()
    for fold in (1, 2): (out / f"fold_{fold}/metrics.json").unlink()
    (out / "fold_1/last/training.safetensors").write_bytes(b"damaged")
    with pytest.raises(ts.InputError, match="Fold 1 failed.*training.safetensors") as error:
        ts.cross_validate(slices, out, CONFIG, choose_folds(slices, count=3), at_once)
    assert "2 of 3 folds are finished" in str(error.value)
    assert (out / "fold_1.log").exists() and (out / "fold_2/metrics.json").exists()
    assert not (out / "metrics.json").exists()
    shutil.rmtree(out / "fold_1")  # mended by hand: the same call again does the rest
    third = (out / "fold_3/model.safetensors").stat().st_mtime_ns
    assert ts.cross_validate(slices, out, CONFIG, choose_folds(slices, count=3))["n_slices"] == len(slices)
    assert (out / "fold_3/model.safetensors").stat().st_mtime_ns == third


CHILD = """
import signal
import sys
from tumorseg.data.sources import open_data
from tumorseg.data.splits import choose_folds
from tumorseg.evaluation.cross_validation import cross_validate
from tumorseg.training.config import Config

signal.signal(signal.SIGINT, signal.default_int_handler) # whatever started the tests may have it ignored
slices = open_data(sys.argv[1], 32)
config = Config(epochs=500, width=4, depth=2, batch=4)
cross_validate(slices, sys.argv[2], config, choose_folds(slices, count=3), 2)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("ended_by", ["kill", "Ctrl-C"])
def test_an_ended_cross_validation_leaves_no_process_behind(data, tmp_path, ended_by):
    process = subprocess.Popen([sys.executable, "-c", CHILD, data, tmp_path / "cv"], stderr=subprocess.DEVNULL,
                               start_new_session=True)
    history = tmp_path / "cv/fold_1/history.csv"
    while process.poll() is None and not history.exists(): time.sleep(.05)
    if ended_by == "kill": os.kill(process.pid, signal.SIGKILL)
    else: os.killpg(process.pid, signal.SIGINT) # a terminal sends it to all
    process.wait()
    time.sleep(1)
    before = history.read_text()
    assert 2 <= before.count("\n") < 500, "it was to be ended in the middle"
    time.sleep(1)
    assert history.read_text() == before, "a fold went on without its parent"
    if ended_by == "Ctrl-C": assert not list((tmp_path / "cv").glob(".slices_*")), "the shared slices stayed behind"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_fold_whose_process_is_killed_does_not_stop_the_others(slices, done, tmp_path, monkeypatch):
    out, start = tmp_path / "cv", cross_validation._start
    shutil.copytree(done, out)
    for fold in (1, 2, 3): (out / f"fold_{fold}/metrics.json").unlink()

    def start_and_kill(shared, run, number, config, environment):
        process, output = start(shared, run, number, config, environment)
        if number == 2: process.kill()
        return process, output

    monkeypatch.setattr(cross_validation, "_start", start_and_kill)
    with pytest.raises(ts.InputError, match="Fold 2 failed: its process was ended by signal 9") as error:
        ts.cross_validate(slices, out, CONFIG, choose_folds(slices, count=3), 2)
    assert "2 of 3 folds are finished" in str(error.value) and (out / "fold_2.log").exists()


def test_other_settings_folds_or_data_are_refused(slices, done):
    with pytest.raises(ts.InputError, match="other data, folds or settings"):
        ts.cross_validate(slices, done, ts.Config(epochs=3, width=4, depth=2, batch=4), choose_folds(slices, count=3))
    with pytest.raises(ts.InputError, match="other folds"):
        ts.cross_validate(slices, done, CONFIG, choose_folds(slices, count=4))
    with pytest.raises(ts.UsageError, match="at_once"): ts.cross_validate(slices, done, CONFIG, at_once=0)


def test_unknown_patients_have_no_folds_unless_the_source_brings_them(slices):
    nameless = slices.assign(patient="")
    with pytest.raises(ts.InputError, match="unknown"): choose_folds(nameless)
    with pytest.raises(ts.UsageError, match="official"): choose_folds(slices, "official")
    brought = nameless.assign(split=[f"fold{i % 3 + 1}" for i in range(len(slices))])
    assert choose_folds(brought).made == "authors"


def test_each_fold_has_its_own_gpu_and_its_share_of_the_threads(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    places = [_environment(place, 3) for place in range(3)]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["4", "6", "4"]
    assert {place["OMP_NUM_THREADS"] for place in places} == {"2"}


class Page(HTMLParser):
    "Counts tags, checks that each is closed, and keeps every address."
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in ("meta", "img", "br"): self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag


@pytest.fixture(scope="module")
def hostile(slices, tmp_path_factory):
    "A run on slices whose names, patients and splits come from somebody who means ill."
    bad = slices.assign(name=HOSTILE + slices.table["name"], patient=HOSTILE + slices.table["patient"])
    run = ts.train(bad, tmp_path_factory.mktemp("runs") / "<script>alert(2)<", CONFIG)
    ts.evaluate(run, bad)
    return run, bad


def test_the_report_is_one_whole_page_and_hostile_names_are_text(hostile):
    run, bad = hostile
    metrics = json.loads((run / "metrics.json").read_text())
    worse = {**metrics, HOSTILE: HOSTILE, "by_size": {HOSTILE: {"dice": .5, "low": None}}}
    (run / "metrics.json").write_text(json.dumps(worse))
    text = ts.write_report(run, bad).read_text(encoding="utf-8")
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = Page(text)
    assert "script" not in page.tags and "&lt;script&gt;" in text and "<script" not in text
    assert len(page.addresses) >= 5 and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(text) < 3e6 and f"Dice {metrics['dice_mean']:.3f}" in text


def test_a_run_without_scores_is_told_what_to_give(hostile, tmp_path):
    run, bad = tmp_path / "run", hostile[1]
    shutil.copytree(hostile[0], run)
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "overlays")
    text = ts.write_report(run, bad).read_text(encoding="utf-8")
    assert "tumorseg evaluate" in text and "not scored yet" in text and Page(text).tags


@pytest.mark.parametrize("damage", [dict(dice_mean="high"), dict(dice_mean=5), dict(detection=None), dict(size=[]),
                                    dict(n_with_tumour="x", sensitivity=None), dict(baselines=[{}]), dict(by_size=[3])])
def test_damaged_scores_are_a_sentence_in_the_report(hostile, tmp_path, damage):
    run, bad = tmp_path / "run", hostile[1]
    shutil.copytree(hostile[0], run)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | damage))
    try: ts.write_report(run, bad)
    except ts.InputError as error: assert "metrics.json" in str(error)
    for key in damage: metrics.pop(key)
    (run / "metrics.json").write_text(json.dumps(metrics))
    try: ts.write_report(run, bad)
    except ts.InputError as error: assert "metrics.json" in str(error)


def test_scores_of_another_model_or_other_data_are_not_reported(hostile, tmp_path):
    run, bad = tmp_path / "run", hostile[1]
    shutil.copytree(hostile[0], run)
    metrics = json.loads((run / "metrics.json").read_text())
    for change in (dict(model="0123456789abcdef"), dict(own_data=False), dict(own_data=None)):
        (run / "metrics.json").write_text(json.dumps(metrics | change))
        text = ts.write_report(run, bad).read_text(encoding="utf-8")
        assert "tumorseg evaluate" in text and "of another model" in text and "Dice, mean per slice" not in text


def test_a_network_that_finds_nothing_has_no_fine_headline(hostile, tmp_path):
    run, bad = tmp_path / "run", hostile[1]
    shutil.copytree(hostile[0], run)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["detection"]["hit"] = 0
    (run / "metrics.json").write_text(json.dumps(metrics | dict(dice_mean=.771)))
    text = ts.write_report(run, bad).read_text(encoding="utf-8")
    assert 'class="big">It finds no tumour at all' in text


POOLED = {"slices.csv without a column": ("slices.csv", lambda table: table.drop(columns="nsd")),
          "slices.csv with text": ("slices.csv", lambda table: table.assign(dice="good")),
          "a Dice of -1": ("slices.csv", lambda table: table.assign(dice=-1)),
          "baselines.csv without a column": ("baselines.csv", lambda table: table.drop(columns="dice")),
          "baselines.csv with text": ("baselines.csv", lambda table: table.assign(dice="good"))}


@pytest.mark.parametrize("kind", POOLED)
def test_folds_with_damaged_tables_are_not_pooled(done, tmp_path, kind):
    name, damage = POOLED[kind]
    shutil.copytree(done, tmp_path / "cv")
    path = tmp_path / "cv/fold_2" / name
    damage(pd.read_csv(path, keep_default_na=False)).to_csv(path, index=False)
    with pytest.raises(ts.InputError, match=f"fold_2.{name}.*Evaluate"): pool_folds(tmp_path / "cv")


def test_what_cannot_be_reported_is_said_in_a_sentence(hostile, slices, tmp_path):
    run, bad = tmp_path / "run", hostile[1]
    shutil.copytree(hostile[0], run)
    with pytest.raises(ts.InputError, match="other data"): ts.write_report(run, slices)
    (run / "overlays/worst.png").write_bytes(b"no picture")
    with pytest.raises(ts.InputError, match="worst.png"): ts.write_report(run, bad)
    (run / "metrics.json").write_text("{")
    with pytest.raises(ts.InputError, match="metrics.json"): ts.write_report(run, bad)
    (run / "history.csv").unlink()
    with pytest.raises(ts.InputError, match="no history"): ts.write_report(run, bad)
    with pytest.raises(ts.InputError, match="config.json"): ts.write_report(tmp_path / "nowhere", bad)
