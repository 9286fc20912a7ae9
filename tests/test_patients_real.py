"Folds by patients and the authors' own, on the real sets, where they are at hand beside the project."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tumorseg as ts
from tumorseg.data.patients import leaking_patients, patients_table, split_in_words, split_state, with_patients
from tumorseg.data.splits import load_folds, patient_folds, save_folds, split_by

SHARED = Path(__file__).parents[2] / "shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the project (../shared)")


@pytest.fixture(scope="module")
def work(tmp_path_factory): return tmp_path_factory.mktemp("patients")


@pytest.fixture(scope="module")
def kaggle(work):
    return ts.open_data(SHARED / "data/kaggle", 64, patients=SHARED / "data/cheng/patients.csv", cache=work / "cache")


def test_the_official_split_leaks(kaggle):
    assert split_state(kaggle) == "leak" and len(leaking_patients(kaggle)) > 100
    assert "429 of 429 slices of valid and 210 of 215 slices of test" in split_in_words(kaggle)
    with pytest.raises(ts.InputError, match="--split patients"): ts.choose_split(kaggle)
    assert ts.choose_split(kaggle, "official") is kaggle


def test_folds_of_the_kaggle_set(kaggle, work):
    folds = patient_folds(kaggle, 5, seed=0)
    sizes = np.bincount([folds.fold[name] for name in kaggle.table["name"]])[1:]
    assert sizes.min() > .8 * len(kaggle) / 5 and sizes.max() < 1.2 * len(kaggle) / 5
    shares = [(split_by(kaggle, folds, fold).in_split("test").table["category"] == 1).mean() for fold in range(1, 6)]
    assert max(shares) - min(shares) < .15
    save_folds(work / "folds.json", folds)
    for fold in range(1, 6):
        chosen = ts.choose_split(kaggle, str(work / "folds.json"), fold=fold)
        assert split_state(chosen) == "separate" and chosen.folds == folds == load_folds(work / "folds.json")
    with pytest.raises(ts.InputError, match="another data set"): split_by(kaggle[:2000], folds)


def test_the_authors_folds(work):
    subprocess.run([sys.executable, SHARED / "tools/figshare_mat.py", work / "mat"], check=True, capture_output=True)
    figshare = ts.open_data(work / "mat", 64, cache=work / "cache")
    chosen = ts.choose_split(figshare, fold=2)
    folds = chosen.folds
    assert folds.made == "authors" and folds.count == 5 and split_state(chosen) == "separate"
    assert set(figshare.table["split"][chosen.table["split"] == "test"]) == {"fold2"}
    assert set(figshare.table["split"][chosen.table["split"] == "valid"]) == {"fold3"}


def test_what_the_files_suggest_is_a_guess(kaggle):
    nameless = kaggle.assign(patient="")
    table = patients_table(nameless)
    persons = kaggle.table["patient"].groupby(table["patient"]).nunique()
    assert 155 < len(persons) < 450 and (persons == 1).mean() > .85 # parts of scans, few of them of two people
    chosen = ts.choose_split(with_patients(nameless, table), "patients")
    assert split_state(chosen) == "unknown" and "is a guess" in split_in_words(chosen)
    assert split_state(chosen.assign(patient=kaggle.table["patient"])) == "leak" # so it has to be called one


def test_a_split_at_random_keeps_copies_together(kaggle):
    chosen = ts.choose_split(kaggle.assign(patient=""), "random")
    assert chosen.folds.made == "random" and "drawn at random" in split_in_words(chosen)
    assert chosen.table["split"].value_counts().tolist() == [1288, 429, 429]
