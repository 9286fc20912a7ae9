"""The command as a user runs it: in a subprocess, on a small demo set, with the usual mistakes."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tumorseg as ts

SMALL = "--size", 48, "--epochs", 1, "--width", 4, "--depth", 2, "--batch", 4


def tumorseg(*args, **kwargs):
    command = [Path(sys.executable).parent / "tumorseg", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ts.write_demo(tmp_path_factory.mktemp("data") / "demo", patients=8, size=96)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    done = tumorseg("train", data, "--out", out, "--size", 48, "--epochs", 2, "--width", 4, "--depth", 3, "--batch", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)  # the result alone; the lines of the epochs are on stderr
    assert "epoch 2/2" in done.stderr
    return out


def assert_one_sentence(done, *words, code=1):
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and all(word in done.stderr for word in words), done.stderr


def test_a_run_folder_has_what_the_design_says(run):
    facts = json.loads((run / "config.json").read_text())
    assert facts["config"]["epochs"] == 2 and facts["size"] == 48 and len(facts["data"]["fingerprint"]) == 16
    assert "torch" in facts["versions"]
    history = pd.read_csv(run / "history.csv")
    columns = "epoch train_loss valid_loss valid_dice lr seconds slices_per_second skipped"
    assert history.columns.tolist() == columns.split()
    assert len(history) == 2
    assert (run / "model.safetensors").exists() and (run / "last").is_dir()


def test_evaluate_writes_the_summary_the_slices_and_the_pictures(run, data):
    done = tumorseg("evaluate", run, data)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "metrics.json").read_text())
    keys = ("split label n_slices n_patients threshold dice_mean dice_ci_low dice_ci_high dice_median iou_mean "
            "dice_pooled precision recall")
    assert set(keys.split()) <= set(summary) and summary["split"] == "test" and summary["label"] == "contour"
    assert f"{summary['dice_mean']:.3f}" in done.stdout and "both masks empty: 1" in done.stdout.lower()
    slices = pd.read_csv(run / "slices.csv")
    assert len(slices) == summary["n_slices"] and abs(slices["dice"].mean() - summary["dice_mean"]) < 1e-5
    assert {path.name for path in (run / "overlays").iterdir()} == {"worst.png", "median.png", "best.png"}


def test_predict_names_the_broken_file_and_does_the_others(run, data, tmp_path):
    good, = sorted((data / "test").glob("*.jpg"))[:1]
    shutil.copy(good, tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:500])
    Image.fromarray(np.full((50, 31), 900, np.uint16)).save(tmp_path / "sixteen.tiff")
    files = [tmp_path / name for name in ("good.jpg", "cut.jpg", "sixteen.tiff")]
    assert_one_sentence(tumorseg("predict", *files, "--out", tmp_path / "out", "--model", run), "cut.jpg")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"good_mask.png", "good_overlay.png", "sixteen_mask.png", "sixteen_overlay.png",
                       "predictions.csv"}
    assert Image.open(tmp_path / "out/sixteen_mask.png").size == (31, 50)


def test_predict_takes_folders_and_a_threshold(run, data, tmp_path):
    for patient in ("a", "b"):
        (tmp_path / "scans" / patient).mkdir(parents=True)
        shutil.copy(next((data / "test").glob("*.jpg")), tmp_path / "scans" / patient / "1.jpg")
    out = tmp_path / "out"
    done = tumorseg("predict", tmp_path / "scans", "--out", out, "--model", run, "--threshold", 1e-6)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tumour in 100.00% of the pixels") == 2 and "threshold 0.00" in done.stdout
    assert {path.relative_to(out).as_posix() for path in out.rglob("*_mask.png")} == {"a/1_mask.png", "b/1_mask.png"}
    assert_one_sentence(tumorseg("predict", "--out", out, "--model", run), "give pictures", code=2)
    (tmp_path / "scans/a/1_mask.png").write_bytes(b"ground truth")
    done = tumorseg("predict", tmp_path / "scans/a/1.jpg", "--out", tmp_path / "scans/a", "--model", run)
    assert_one_sentence(done, "1_mask.png")
    assert (tmp_path / "scans/a/1_mask.png").read_bytes() == b"ground truth"


def test_a_photograph_is_said_to_be_unlike_the_training(run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    done = tumorseg("predict", tmp_path / "photo.png", "--out", tmp_path / "out", "--model", run)
    assert done.returncode == 0 and "unlike" in done.stdout, done.stdout + done.stderr


def test_a_threshold_is_set(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    assert tumorseg("threshold", tmp_path / "run", 0.25).returncode == 0
    assert ts.Run(tmp_path / "run").segmenter().info.threshold == .25
    assert_one_sentence(tumorseg("threshold", tmp_path / "run", 2), "threshold", code=2)


def test_patients_are_written_to_be_filled_in(data, tmp_path):
    done = tumorseg("patients", data, "--out", tmp_path / "patients.csv")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "patients.csv")
    assert {"name", "patient", "guess"} <= {*table} and len(table) == len(ts.open_data(data, 48))
    assert tumorseg("audit", data, "--patients", tmp_path / "patients.csv", "--size", 48).returncode == 0


def test_healthy_pictures_are_added_and_scored_apart(data, tmp_path):
    other = ts.write_demo(tmp_path / "other", patients=20, seed=1, size=96)
    slices = ts.open_data(other, 48)
    (tmp_path / "healthy").mkdir()
    for number, name in enumerate(slices.table["name"][slices.areas == 0]):
        shutil.copy(other / name, tmp_path / "healthy" / f"{number}.jpg")
    healthy = "--healthy", tmp_path / "healthy"
    done = tumorseg("train", data, "--out", tmp_path / "run", *healthy, *SMALL)
    assert done.returncode == 0, done.stderr
    assert set(pd.read_csv(tmp_path / "run/table.csv", keep_default_na=False)["source"]) == {"", "healthy"}
    done = tumorseg("evaluate", tmp_path / "run", data, *healthy)
    assert done.returncode == 0 and "pecificity" in done.stdout, done.stderr


def test_scores_of_other_data_go_elsewhere(run, data, tmp_path):
    other = ts.write_demo(tmp_path / "other", patients=8, seed=1, size=96)
    assert_one_sentence(tumorseg("evaluate", run, other), "--out")
    done = tumorseg("evaluate", run, other, "--out", tmp_path / "scores")
    assert done.returncode == 0 and json.loads((tmp_path / "scores/metrics.json").read_text())["own_data"] is False


def test_categories_are_chosen_where_one_is_no_tumour(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data").glob("*/_annotations.coco.json"):
        notes = json.loads(path.read_text())
        notes["categories"] = [category | {"name": "brain"} if category["id"] == 2 else category | {"name": "tumor"}
                               for category in notes["categories"]]
        path.write_text(json.dumps(notes))
    assert_one_sentence(tumorseg("audit", tmp_path / "data", "--size", 48), "brain", "--categories")
    assert tumorseg("audit", tmp_path / "data", "--size", 48, "--categories", "1").returncode == 0


def test_the_doctor_knows_data_from_a_run(run, data):
    assert_one_sentence(tumorseg("doctor", run, data), "The data comes first", code=2)


@pytest.mark.parametrize("args, words, code", [
    (("train", "no-such-folder", "--out", "r"), ("no-such-folder",), 1),
    (("train", ".", "--out", "r"), ("_annotations.coco.json",), 1),
    (("train", ".", "--out", "r", "--epochs", "0"), ("epochs",), 2),
    (("train", ".", "--out", "r", "--size", "0"), ("size",), 2),
    (("evaluate", "no-run", "."), ("no-run",), 1),
    (("predict", "x.png", "--out", "o", "--model", "no-run"), ("no-run",), 1),
    (("frobnicate",), (), 2),
    (("train",), (), 2),
])
def test_mistakes_end_in_a_sentence(args, words, code, tmp_path):
    assert_one_sentence(tumorseg(*args, cwd=tmp_path), *words, code=code)
    assert not list(tmp_path.iterdir())


def test_a_run_is_never_overwritten_and_its_data_never_mixed(run, data, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert_one_sentence(tumorseg("train", data, "--out", run, "--size", 48), "other settings", "epochs 2, not 30")
    again = tumorseg("train", data, "--out", run, "--resume")
    assert again.returncode == 0 and "is finished, 2 of 2 epochs" in again.stderr
    other = ts.write_demo(tmp_path / "other", patients=8, seed=1, size=96)
    assert_one_sentence(tumorseg("train", other, "--out", run, "--resume"), "other data")
    assert_one_sentence(tumorseg("evaluate", run, data, "--split", "holdout"), "holdout", "test")
    assert before.items() <= {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}.items()


def test_a_damaged_model_is_named(run, tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:1000])
    assert_one_sentence(tumorseg("evaluate", tmp_path, data), "model.safetensors")


def test_audit_reports_and_keeps_what_it_found(data, tmp_path):
    done = tumorseg("audit", data, "--json", tmp_path / "audit.json", "--figure", tmp_path / "audit.png")
    assert done.returncode == 0, done.stderr
    assert "what a score means" in done.stdout.lower() and "filled rectangles" in done.stdout
    assert json.loads((tmp_path / "audit.json").read_text())["labels"]["rectangles"] == 0
    assert Image.open(tmp_path / "audit.png").width > 600


def test_a_run_by_folds_is_evaluated_on_its_own_fold(data, tmp_path):
    assert tumorseg("train", data, "--out", tmp_path / "run", "--folds", 3, "--fold", 2, *SMALL).returncode == 0
    table = pd.read_csv(tmp_path / "run/table.csv")
    assert table.groupby("patient")["split"].nunique().max() == 1 and (tmp_path / "run/folds.json").exists()
    assert tumorseg("evaluate", tmp_path / "run", data).returncode == 0
    assert set(pd.read_csv(tmp_path / "run/slices.csv")["name"]) == set(table["name"][table["split"] == "test"])
    folds = "--split", tmp_path / "run/folds.json", "--fold", 2
    shared = tumorseg("train", data, "--out", tmp_path / "second", *folds, *SMALL)
    assert shared.returncode == 0 and pd.read_csv(tmp_path / "second/table.csv").equals(table)


def test_a_split_that_leaks_is_refused_unless_asked_for_by_name(data, tmp_path):
    leaky = tmp_path / "leaky"
    shutil.copytree(data, leaky)
    train, test = (json.loads((leaky / split / "_annotations.coco.json").read_text()) for split in ("train", "test"))
    test["images"][0]["patient"] = train["images"][0]["patient"]
    (leaky / "test/_annotations.coco.json").write_text(json.dumps(test))
    done = tumorseg("train", leaky, "--out", tmp_path / "run", *SMALL)
    assert_one_sentence(done, "Patients leak", "--split official")
    assert not (tmp_path / "run").exists()
    done = tumorseg("train", leaky, "--out", tmp_path / "run", "--split", "official", *SMALL)
    assert done.returncode == 0 and "Patients leak" in done.stderr
    assert "Patients leak" in tumorseg("evaluate", tmp_path / "run", leaky).stdout
    assert json.loads((tmp_path / "run/metrics.json").read_text())["patients"] == "leak"
    wrong = tumorseg("train", leaky, "--out", tmp_path / "x", "--split", "official", "--fold", 2, *SMALL)
    assert_one_sentence(wrong, "--fold", code=2)


def test_patients_that_are_found_after_a_training_still_count(data, tmp_path):
    nameless = tmp_path / "nameless"
    shutil.copytree(data, nameless)
    rows = []
    for path in nameless.glob("*/_annotations.coco.json"):
        notes = json.loads(path.read_text())
        for image in notes["images"]: rows.append((f"{path.parent.name}/{image['file_name']}", image.pop("patient")))
        path.write_text(json.dumps(notes))
    table = pd.DataFrame(rows, columns=["name", "patient"])
    runs = [tmp_path / "first", tmp_path / "second"]
    assert tumorseg("train", nameless, "--out", runs[0], *SMALL).returncode == 0
    shutil.copytree(*runs)
    table.to_csv(tmp_path / "apart.csv", index=False)
    test = table["name"].str.startswith("test/")
    table.loc[test.idxmax(), "patient"] = table["patient"][table["name"].str.startswith("train/").idxmax()]
    table.to_csv(tmp_path / "leaky.csv", index=False)
    apart, leaky = (("--patients", tmp_path / name) for name in ("apart.csv", "leaky.csv"))
    assert "patients are unknown" in tumorseg("evaluate", runs[0], nameless).stdout
    assert "Patients leak" in tumorseg("evaluate", runs[0], nameless, *leaky).stdout
    text = tumorseg("evaluate", runs[0], nameless, *apart).stdout
    assert "Dice" in text and "patients are unknown" not in text and "leak" not in text
    assert "patients unknown" in tumorseg("compare", *runs, nameless).stdout
    assert "patients unknown" not in tumorseg("compare", *runs, nameless, *apart).stdout
    assert_one_sentence(tumorseg("compare", *runs, nameless, *leaky), "has learnt from", "--leaking")
    resumed = tumorseg("train", nameless, "--out", runs[0], "--resume", *apart)
    assert resumed.returncode == 0, resumed.stderr
