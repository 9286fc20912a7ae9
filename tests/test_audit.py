"The audit finds what was planted in the demo set, is silent on the clean one, and finds the known facts of the real one where it is at hand."
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tumorseg.core import InputError
from tumorseg.data.coco import COCO_NAME
from tumorseg.data.experts import expert_contours, find_partners
from tumorseg.data.patients import split_state, with_patients
from tumorseg.data.sources import open_data
from tumorseg.demo.tumours import write_demo
from tumorseg.quality.audit import audit
from tumorseg.quality.verdict import audit_in_words, verdict

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module")
def work(tmp_path_factory): return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def demo(work): return write_demo(work / "demo", patients=30, size=96)


def record(folder, split): return json.loads((folder / split / COCO_NAME).read_text())
def keep(folder, split, content): (folder / split / COCO_NAME).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def planted(demo, work):
    "Six contours made boxes, a stale area, a bbox as corners, a sliver, a test picture copied into train, one patient's test slices listed in train too."
    folder = work / "planted"
    shutil.copytree(demo, folder)
    train, test = record(folder, "train"), record(folder, "test")
    for annotation in train["annotations"][:6]:
        x, y, w, h = annotation["bbox"]
        annotation.update(segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]], area=w * h)
    x, y, w, h = train["annotations"][8]["bbox"]
    train["annotations"][8]["bbox"] = [x, y, x + w, y + h]
    train["annotations"][9]["area"] = 3 * train["annotations"][9]["area"]
    train["annotations"].append({**train["annotations"][10], "id": 999, "segmentation": [[2, 2, 2.8, 2, 2.8, 9, 2, 9]], "bbox": [2, 2, .8, 7], "area": 5.6})
    leaked = test["images"][0]["patient"]
    moved = next(image for image in test["images"] if image["patient"] == leaked and any(a["image_id"] == image["id"] for a in test["annotations"]))
    shutil.move(folder / "test" / moved["file_name"], folder / "train" / moved["file_name"])
    test["images"].remove(moved)
    train["images"].append({**moved, "id": 5000})
    train["annotations"] += [{**a, "id": 5000 + a["id"], "image_id": 5000} for a in test["annotations"] if a["image_id"] == moved["id"]]
    test["annotations"] = [a for a in test["annotations"] if a["image_id"] != moved["id"]]
    copied = record(folder, "valid")["images"][0]["file_name"]
    shutil.copy(folder / "valid" / copied, folder / "train" / "copy.jpg")
    train["images"].append({"id": 6000, "file_name": "copy.jpg", "height": 96, "width": 96, "patient": "somebody"})
    keep(folder, "train", train); keep(folder, "test", test)
    names = {image["id"]: f"train/{image['file_name']}" for image in train["images"]}
    return dict(folder=folder, boxes={names[a["image_id"]] for a in train["annotations"][:6]}, leaked=leaked, copied=f"valid/{copied}",
                corners=names[train["annotations"][8]["image_id"]], stale=names[train["annotations"][9]["image_id"]], sliver=names[train["annotations"][10]["image_id"]])


def test_clean(demo, work):
    facts = audit(open_data(demo, 96, cache=work / "cache"), demo)
    labels = facts["labels"]
    assert verdict(facts)["clean"] and verdict(facts)["learn"] == "Outlines of tumours."
    assert facts["leakage"]["conclusion"] == "no" and facts["leakage"]["patients"]["leaking"] == 0 and facts["images"]["copies"] == []
    assert not any(labels[key] for key in ("rectangles", "slivers", "bbox_wrong_order", "bbox_stale", "area_stale"))
    assert json.loads(json.dumps(facts)) == facts and "Nothing." in audit_in_words(facts)
    assert verdict(audit(open_data(demo, 96, cache=work / "cache")))["clean"]  # without the folder, too


def test_planted(planted, work):
    slices = open_data(planted["folder"], 96, cache=work / "cache")
    facts = audit(slices, planted["folder"])
    labels, found = facts["labels"], facts["leakage"]["patients"]["splits"]["test"]
    assert set(labels["rectangle_names"]) >= planted["boxes"] and labels["rectangles"] == 7  # the sliver is one as well
    assert [sliver["name"] for sliver in labels["slivers"]] == [planted["sliver"]] == labels["several"]
    assert labels["bbox_wrong_order"] == [planted["corners"]] and labels["area_stale"] == [planted["stale"]] and labels["bbox_stale"] == []
    assert "train/copy.jpg" in labels["empty"]
    [pair] = facts["images"]["copies"]
    assert pair["exact"] and {pair["name"], pair["other"]} == {"train/copy.jpg", planted["copied"]} and facts["images"]["across_splits"] == 1
    assert facts["leakage"]["conclusion"] == "yes" and facts["leakage"]["patients"]["leaking"] == 1
    assert found["leaked"] == (slices.in_split("test").table["patient"] == planted["leaked"]).sum() > 0
    assert not verdict(facts)["clean"] and len(verdict(facts)["to_do"]) == 4
    text = audit_in_words(facts)
    assert planted["sliver"] in text and f"7 of {labels['annotations']} annotations" in text and "Split by patients" in text


def test_missing_image(planted, work):
    folder = work / "missing"
    shutil.copytree(planted["folder"], folder)
    (folder / "train" / "copy.jpg").unlink()
    with pytest.raises(InputError, match="copy.jpg.*not found"): open_data(folder, 96, cache=work / "cache")


def test_one_split_and_few_slices(demo, work):
    slices = open_data(demo, 96, cache=work / "cache")
    for few in (slices.in_split("train"), slices[:3], slices[[0, len(slices) - 1]]):
        facts = audit(few)
        assert facts["slices"] == len(few) and audit_in_words(facts) and verdict(facts)["to_do"]


def test_blank_slices(work):
    "A set of nothing but empty pictures and masks is audited, not crashed on."
    folder = work / "blank"
    for split in ("train", "test"):
        (folder / split / "images").mkdir(parents=True); (folder / split / "masks").mkdir()
        for i in range(4):
            for kind in ("images", "masks"): Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / split / kind / f"{i}.png")
    facts = audit(open_data(folder, 32, cache=work / "cache"), folder)
    assert facts["labels"]["annotations"] == 0 and len(facts["labels"]["empty"]) == 8 and audit_in_words(facts)
    assert all(row["dice"] == 1 for row in facts["baselines"])  # empty and empty is 1


@pytest.fixture(scope="module")
def kaggle(work):
    if not SHARED.is_dir(): pytest.skip("the real data sets are not beside the project (../shared)")
    return open_data(SHARED / "data/kaggle", 128, cache=work / "cache")


def test_kaggle_without_patients(kaggle):
    start = time.perf_counter()
    facts = audit(kaggle, SHARED / "data/kaggle")
    print(f"audit of {len(kaggle)} slices: {time.perf_counter() - start:.1f} s")
    labels, leakage = facts["labels"], facts["leakage"]
    assert labels["rectangles"] == labels["annotations"] == 2146
    assert len(labels["empty"]) == 1 and labels["empty"][0].startswith("train/2369_")
    assert len(labels["slivers"]) == 1 and labels["slivers"][0]["name"].startswith("train/176_") and labels["several"] == [labels["slivers"][0]["name"]]
    assert facts["images"]["sizes"] == {"640 x 640": 2146} and facts["images"]["copies"] == []
    assert facts["images"]["channels_equal"] == facts["images"]["files_with_channels"] >= 200
    assert leakage["conclusion"] == "likely" and leakage["patients"] is None and leakage["numbers"]["splits"]["test"]["leaked"] > 170
    assert leakage["pictures"]["splits"]["test"]["beats"] > .4
    rows = {row["baseline"]: row for row in facts["baselines"]}
    assert rows["all background"]["dice"] == 0 and abs(rows["most alike slice copied"]["dice"] - .68) < .01 and len(rows) == 3


def test_kaggle_with_patients_and_contours(kaggle, work):
    import subprocess
    import sys
    subprocess.run([sys.executable, SHARED / "tools/figshare_mat.py", work / "mat"], check=True, capture_output=True)
    figshare = open_data(work / "mat", 128, cache=work / "cache")
    contours = expert_contours(kaggle, figshare, find_partners(kaggle, figshare))
    facts = audit(with_patients(kaggle, SHARED / "data/cheng/patients.csv"), SHARED / "data/kaggle", contours)
    splits, rows = facts["leakage"]["patients"]["splits"], {row["baseline"]: row for row in facts["baselines"]}
    assert (splits["valid"]["leaked"], splits["valid"]["slices"], splits["test"]["leaked"], splits["test"]["slices"]) == (429, 429, 210, 215)
    assert abs(rows["the same, not of the patient"]["dice"] - .31) < .015 and rows["the same, not of the patient"]["slices"] == 215
    assert abs(rows["expert contour"]["dice"] - .56) < .01 and rows["expert contour"]["slices"] == 183
    some = audit(kaggle, SHARED / "data/kaggle", contours)  # patients from the contours: known for those only
    known = some["leakage"]["patients"]["splits"]["test"]
    assert some["patients_known"] == 1751 and known["known"] == 183 and known["leaked"] > 170 and split_state(kaggle) == "unknown"
