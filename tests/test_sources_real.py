"The readers and the expert contours on the real data sets, where they are at hand beside the project."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tumorseg as ts
from tumorseg.data.experts import expert_contours, find_partners, partners_in_words
from tumorseg.data.patients import split_state

SHARED = Path(__file__).parents[2] / "shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the project (../shared)")


@pytest.fixture(scope="module")
def work(tmp_path_factory): return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def figshare(work):
    subprocess.run([sys.executable, SHARED / "tools/figshare_mat.py", work / "mat"], check=True, capture_output=True)
    return ts.open_data(work / "mat", 128, cache=work / "cache")


@pytest.fixture(scope="module")
def kaggle(work): return ts.open_data(SHARED / "data/kaggle", 128, cache=work / "cache")


def test_lgg(work):
    slices = ts.open_data(SHARED / "data/lgg", 256, cache=work / "cache")
    assert slices.images.shape == (114, 3, 256, 256) and slices.table["patient"].nunique() == 3
    assert (slices.table["label"] == "").sum() == 64 and slices.masks.any((1, 2)).sum() == 50


def test_figshare(figshare):
    import csv
    csv.field_size_limit(10 ** 9)
    with open(SHARED / "data/cheng/slices.csv", newline="") as file:
        rows = {f"{row['number']}.mat": row for row in csv.DictReader(file)}
    table = figshare.table
    assert len(table) == len(rows) == 2445 and sorted(set(table["split"])) == [f"fold{i}" for i in range(1, 6)]
    assert table["patient"].tolist() == [rows[name]["patient_group"] for name in table["name"]]
    assert table["category"].tolist() == [int(rows[name]["label"]) for name in table["name"]]
    assert table.groupby("patient")["split"].nunique().max() == 1 and figshare.masks.any((1, 2)).all()
    assert (table["height"] == [int(rows[name]["frame"]) for name in table["name"]]).all()


def test_expert_contours(kaggle, figshare):
    partners = find_partners(kaggle, figshare)
    assert partners["verdict"].value_counts().to_dict() == {"same number": 1750, "not there": 395, "another number": 1}
    [wrong] = partners[partners["verdict"] == "another number"].to_dict("records")
    assert wrong["name"].startswith("valid/2810_") and wrong["partner_name"] == "2851.mat" and wrong["correlation"] < .6
    assert partners.loc[partners["verdict"] == "same number", "correlation"].min() > .94
    assert "2851.mat" in partners_in_words(partners)
    experts = expert_contours(kaggle, figshare, partners)
    boxes = kaggle.masks[partners["partner"].to_numpy() >= 0]
    areas, contours = boxes.sum((1, 2)), experts.masks.sum((1, 2))
    dice = 2 * (boxes & experts.masks).sum((1, 2)) / (areas + contours)
    assert abs(dice.mean() - .568) < .01 and abs(np.median(areas / contours) - 2.4) < .1
    assert set(experts.table["label"]) == {"contour"} and (experts.table["patient"] != "").all()
    assert set(experts.table["category"]) == {1, 2, 3}


def test_healthy_slices_beside_expert_contours(kaggle, figshare, work):
    healthy = SHARED / "data/healthy"
    experts = ts.open_data(SHARED / "data/kaggle", 128, contours=work / "mat", healthy=healthy, cache=work / "cache")
    added = experts.table[experts.table["source"] == "healthy"]
    assert len(added) == 572 and len(experts) == 572 + 1751 and set(added["label"]) == {""}
    assert 100 < added["patient"].nunique() < 200 and added.groupby("patient")["split"].nunique().max() == 1
    shares = pd.crosstab(experts.table["source"], experts.table["split"], normalize="index")
    assert (shares.loc[""] - shares.loc["healthy"]).abs().max() < .02
    slices = ts.open_data(work / "mat", 128, healthy=healthy, cache=work / "cache")
    chosen = ts.choose_split(slices, "patients")
    assert split_state(chosen) == "separate" and len(chosen) == 2445 + 572
    counts = pd.crosstab(chosen.table["source"], chosen.table["split"])
    assert (counts.loc["healthy"] > 80).all()
