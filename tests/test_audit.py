"The audit finds what was planted in a set, nothing in a clean one, and what is known of the real one, if at hand."
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tumorseg as ts
from tumorseg.data.coco import COCO_NAME
from tumorseg.data.experts import expert_contours, find_partners
from tumorseg.data.patients import split_state
from tumorseg.quality.audit import audit_labels
from tumorseg.quality.leakage import leakage_in_words
from tumorseg.quality.overview import count_subsets
from tumorseg.quality.verdict import audit_in_words
from tumorseg.training.run import start_run

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module")
def work(tmp_path_factory): return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def demo(work): return ts.write_demo(work / "demo", patients=30, size=96)


def record(folder, split): return json.loads((folder / split / COCO_NAME).read_text())
def keep(folder, split, content): (folder / split / COCO_NAME).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def planted(demo, work):
    """Six contours made boxes, a stale area, a bbox as corners, a sliver, a test picture copied into train, one
    patient's test slices listed in train too."""
    folder = work / "planted"
    shutil.copytree(demo, folder)
    train, test = record(folder, "train"), record(folder, "test")
    for annotation in train["annotations"][:6]:
        x, y, w, h = annotation["bbox"]
        annotation.update(segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]], area=w * h)
    x, y, w, h = train["annotations"][8]["bbox"]
    train["annotations"][8]["bbox"] = [x, y, x + w, y + h]
    train["annotations"][9]["area"] = 3 * train["annotations"][9]["area"]
    sliver = dict(id=999, segmentation=[[2, 2, 2.8, 2, 2.8, 9, 2, 9]], bbox=[2, 2, .8, 7], area=5.6)
    train["annotations"].append(train["annotations"][10] | sliver)
    leaked, annotated = test["images"][0]["patient"], {annotation["image_id"] for annotation in test["annotations"]}
    moved = next(image for image in test["images"] if image["patient"] == leaked and image["id"] in annotated)
    shutil.move(folder / "test" / moved["file_name"], folder / "train" / moved["file_name"])
    test["images"].remove(moved)
    train["images"].append({**moved, "id": 5000})
    of_moved = [a for a in test["annotations"] if a["image_id"] == moved["id"]]
    train["annotations"] += [{**a, "id": 5000 + a["id"], "image_id": 5000} for a in of_moved]
    test["annotations"] = [a for a in test["annotations"] if a["image_id"] != moved["id"]]
    copied = record(folder, "valid")["images"][0]["file_name"]
    shutil.copy(folder / "valid" / copied, folder / "train" / "copy.jpg")
    train["images"].append({"id": 6000, "file_name": "copy.jpg", "height": 96, "width": 96, "patient": "somebody"})
    keep(folder, "train", train)
    keep(folder, "test", test)
    names = {image["id"]: f"train/{image['file_name']}" for image in train["images"]}
    named = [names[annotation["image_id"]] for annotation in train["annotations"]]
    return dict(folder=folder, boxes={*named[:6]}, leaked=leaked, copied=f"valid/{copied}",
                corners=named[8], stale=named[9], sliver=named[10])


def test_clean(demo, work):
    slices = ts.open_data(demo, 96, cache=work / "cache")
    facts = ts.audit(slices)
    labels = facts["labels"]
    assert ts.verdict(facts)["clean"] and ts.verdict(facts)["learn"] == "Outlines of tumours."
    assert facts["leakage"]["conclusion"] == "no" and facts["leakage"]["patients"]["leaking"] == 0
    assert facts["images"]["copies"] == []
    assert not any(labels[key] for key in ("rectangles", "slivers", "bbox_wrong_order", "bbox_stale", "area_stale"))
    assert json.loads(json.dumps(facts)) == facts and "Nothing." in audit_in_words(facts)
    assert ts.verdict(ts.audit(replace(slices, folder=None)))["clean"]  # without the folder, too


def test_planted(planted, work):
    slices = ts.open_data(planted["folder"], 96, cache=work / "cache")
    facts = ts.audit(slices)
    labels, found = facts["labels"], facts["leakage"]["patients"]["splits"]["test"]
    assert set(labels["rectangle_names"]) >= planted["boxes"] and labels["rectangles"] == 7  # the sliver is one as well
    assert [sliver["name"] for sliver in labels["slivers"]] == [planted["sliver"]] == labels["several"]
    assert labels["bbox_wrong_order"] == [planted["corners"]] and labels["area_stale"] == [planted["stale"]]
    assert labels["bbox_stale"] == [] and "train/copy.jpg" in labels["empty"]
    [pair] = facts["images"]["copies"]
    assert pair["exact"] and {pair["name"], pair["other"]} == {"train/copy.jpg", planted["copied"]}
    assert facts["images"]["across_splits"] == 1
    assert facts["leakage"]["conclusion"] == "yes" and facts["leakage"]["patients"]["leaking"] == 1
    assert found["leaked"] == (slices.in_split("test").table["patient"] == planted["leaked"]).sum() > 0
    assert not ts.verdict(facts)["clean"] and len(ts.verdict(facts)["to_do"]) == 4
    text = audit_in_words(facts)
    assert f"7 of {labels['annotations']} annotations" in text
    assert planted["sliver"] in text and "Split by patients" in text


TO_DO = "Add slices without a tumour (--healthy FOLDER; tumorseg fetch healthy downloads some)."


def test_a_set_of_tumours_only_is_not_clean_and_its_first_verdict_says_why(demo, work):
    slices = ts.open_data(demo, 96, cache=work / "cache")
    train = slices.table["split"] == "train"
    few = slices[(slices.areas > 0) | ~train | (np.cumsum((slices.areas == 0) & train) <= 2)]  # two healthy ones left
    for asked, count in ((slices[slices.areas > 0], 0), (few, 2)):
        facts = ts.audit(asked)
        answer, learnt = ts.verdict(facts), int((asked.table["split"] == "train").sum())
        assert (facts["healthy"]["learnt"], facts["healthy"]["empty"]) == (learnt, count)
        assert not answer["clean"] and answer["to_do"] == [TO_DO]
        assert list(answer) == ["healthy", "learn", "score", "to_do", "clean"]
        for word in ("cannot know a healthy brain", f"{count} of the {learnt} slices", "91 %", "Cheng", "Br35H"):
            assert word in answer["healthy"]
        lines = audit_in_words(facts).splitlines()
        first = lines[lines.index("Verdict") + 1]
        assert first.startswith("  healthy brains") and answer["healthy"] in first and "Nothing." not in lines[-1]
    facts = ts.audit(slices)
    assert ts.verdict(facts)["healthy"] == "11 of the 95 slices to learn from have no tumour."
    assert "(11 of 95 in train, 2 of 21 in valid, 0 of 16 in test)" in audit_in_words(facts)


def test_healthy_slices_of_another_source_only_are_told(demo, work):
    slices = ts.open_data(demo, 96, cache=work / "cache")
    added = slices.assign(source=np.where(slices.areas > 0, "", "clinic"))
    facts = ts.audit(added)
    assert facts["healthy"]["sources"] == {"": [119, 0], "clinic": [13, 13]}
    assert "All of them are from clinic" in ts.verdict(facts)["healthy"] and ts.verdict(facts)["clean"]
    assert "0 of 119 in the set itself, 13 of 13 in clinic" in audit_in_words(facts)
    own = np.where(np.arange(len(slices)) == np.flatnonzero(slices.areas == 0)[0], "", added.table["source"])
    assert "All of them" not in ts.verdict(ts.audit(added.assign(source=own)))["healthy"]


def test_category_0_may_be_the_tumour_and_another_category_none(demo, work):
    folder = work / "category 0"
    shutil.copytree(demo, folder)
    for split in ("train", "valid", "test"):
        content = record(folder, split)
        content["categories"] = [dict(id=0, name="tumour"), dict(id=5, name="meningioma")]
        for annotation in content["annotations"]: annotation["category_id"] = 0
        if split == "train": content["annotations"][0]["category_id"] = 5
        keep(folder, split, content)
    slices = ts.open_data(folder, 96, cache=work / "cache")
    chosen = (slices.table["category"] == 0).to_numpy()  # what the choice of "tumour" leaves
    slices = replace(slices, masks=slices.masks * chosen[:, None, None].astype(np.uint8), truth=None)
    slices = slices.assign(category=0, label=np.where(slices.areas > 0, "contour", ""))
    facts = ts.audit(slices)
    labels, text = facts["labels"], audit_in_words(facts)
    assert labels["named"] == {"0": ["tumour", 118], "5": ["meningioma", 1]} and labels["annotations"] == 118
    assert labels["categories"] == {"train": {"0": 83}, "valid": {"0": 19}, "test": {"0": 16}}
    assert '0 "tumour" (118), 5 "meningioma" (1)' in text and "train 83 of 0" in text and "12 of 95 in train" in text
    counts = count_subsets(slices)
    assert counts["category 0"].tolist() == [83, 19, 16] and counts["without_tumour"].sum() == 14


def test_an_area_that_is_that_of_the_bbox_is_not_stale(demo, work):
    folder = work / "as Roboflow writes it"
    shutil.copytree(demo, folder)
    for split in ("train", "valid", "test"):
        content = record(folder, split)
        for annotation in content["annotations"]: annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        keep(folder, split, content)
    facts = ts.audit(ts.open_data(folder, 96, cache=work / "cache"))
    assert facts["labels"]["area_stale"] == [] and ts.verdict(facts)["clean"]


def test_neighbours_of_one_patient_are_no_copies_to_remove(demo, work):
    slices = ts.open_data(demo, 96, cache=work / "cache")
    images, patient = np.array(slices.images), slices.table["patient"]
    first, second = np.flatnonzero(patient == patient[0])[:2]
    images[second] = images[first]
    images[second, 0, :4, :4] += 1  # nearly the same, as the neighbour in a volume of thin slices is
    near = replace(slices, images=images, folder=None)
    facts = ts.audit(near)
    assert facts["images"]["copies"] == [] and facts["images"]["neighbours"] == 1 and ts.verdict(facts)["clean"]
    assert "1 near ones of one patient are no copies" in audit_in_words(facts)
    for others in (near.assign(patient=np.where(np.arange(len(near)) == second, "another", patient)),
                   near.assign(patient="")):
        facts = ts.audit(others)
        assert len(facts["images"]["copies"]) == 1 and facts["images"]["neighbours"] == 0
        assert "Look at the copies (1), and keep one of each." in ts.verdict(facts)["to_do"]
    images[second] = images[first]
    twice = ts.audit(replace(near, images=images))
    assert twice["images"]["exact"] == 1 and "Look at the copies (1)" in ts.verdict(twice)["to_do"][0]


def test_the_likely_leak_of_the_audit_is_told_before_a_training(demo, work):
    slices = ts.open_data(demo, 96, cache=work / "cache")
    order, names = np.argsort(slices.table["name"].str.split("/").str[1]), np.empty(len(slices), object)
    names[order] = [f"{number}.jpg" for number in range(len(slices))]
    drawn = np.random.default_rng(0).permutation(slices.table["split"])
    mixed = slices.assign(name=names, split=drawn, patient="")
    assert leakage_in_words(mixed) == ts.audit(replace(mixed, folder=None))["leakage"]["sentence"]
    assert leakage_in_words(mixed).startswith("Likely") and "cannot be checked" not in leakage_in_words(mixed)
    assert "Every patient is on one side only" in leakage_in_words(slices)
    assert "Patients leak" in leakage_in_words(slices.assign(split=drawn))
    many = mixed[np.arange(6001) % len(mixed)]
    many = replace(many, images=None)  # too many to be compared quickly: no picture is looked at
    assert "cannot be checked" in leakage_in_words(many) and "tumorseg audit" in leakage_in_words(many)


@pytest.fixture(scope="module")
def overlapping(work):
    "Ten slices with boxes that overlap: all annotations are rectangles, and a third of the parts of masks."
    random, folder = np.random.default_rng(0), work / "overlapping"
    for split, numbers in (("train", range(6)), ("valid", range(6, 8)), ("test", range(8, 10))):
        images, annotations = [], []
        (folder / split).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(random.integers(0, 256, (64, 64), np.uint8)).save(folder / split / f"{number}.png")
            images.append(dict(id=number, file_name=f"{number}.png", height=64, width=64))
            for x, y, w, h in [(8, 8, 20, 20), (20, 16, 16, 20), (40, 40, 16, 12)][:2 + number % 2]:
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(dict(id=len(annotations), image_id=number, category_id=1, segmentation=[outline],
                                        bbox=[x, y, w, h], area=w * h))
        content = dict(images=images, annotations=annotations, categories=[dict(id=1, name="tumour")])
        (folder / split / COCO_NAME).write_text(json.dumps(content))
    return ts.open_data(folder, 64, cache=work / "cache")


def reported(slices, run):
    "The report of a run that was begun on these slices, as if it had learnt something."
    start_run(slices, run, ts.Config(), ts.UNet(1, 4, 2))
    numbers = dict(train_loss=.5, valid_loss=.5, valid_dice=.5, lr=.001, seconds=1., slices_per_second=1.)
    pd.DataFrame([dict(epoch=epoch, **numbers) for epoch in (1, 2)]).to_csv(run / "history.csv", index=False)
    return ts.write_report(run, slices).read_text(encoding="utf-8")


def test_the_report_counts_what_the_audit_counts(overlapping, work):
    "It once forgot where the slices came from, counted parts of masks, and saw outlines in a set of boxes."
    sentence = "Where a tumour is, not its outline: 25 of 25 annotations are filled rectangles."
    assert ts.verdict(ts.audit(overlapping))["learn"] == sentence and sentence in reported(overlapping, work / "boxes")
    parts = audit_labels(replace(overlapping, folder=None))  # as where expert contours were laid over
    assert (parts["counted"], parts["rectangles"], parts["annotations"]) == ("parts of masks", 5, 15)


def test_annotations_are_those_of_the_slices_and_not_of_the_whole_folder(overlapping):
    few = audit_labels(overlapping[:3])
    assert few["counted"] == "annotations" and few["annotations"] == few["rectangles"] == 7
    renamed = audit_labels(overlapping.assign(name=[f"{row}.png" for row in range(len(overlapping))]))
    assert renamed["counted"] == "parts of masks"  # the JSON does not know these names


def test_missing_image(planted, work):
    folder = work / "missing"
    shutil.copytree(planted["folder"], folder)
    (folder / "train" / "copy.jpg").unlink()
    with pytest.raises(ts.InputError, match="copy.jpg.*not found"): ts.open_data(folder, 96, cache=work / "cache")


def test_one_split_and_few_slices(demo, work):
    slices = ts.open_data(demo, 96, cache=work / "cache")
    for few in (slices.in_split("train"), slices[:3], slices[[0, len(slices) - 1]]):
        facts = ts.audit(few)
        assert facts["slices"] == len(few) and audit_in_words(facts) and ts.verdict(facts)["to_do"]


def test_blank_slices(work):
    "A set of nothing but empty pictures and masks is audited, not crashed on."
    folder = work / "blank"
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
            for i in range(4): Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / split / kind / f"{i}.png")
    facts = ts.audit(ts.open_data(folder, 32, cache=work / "cache"))
    assert facts["labels"]["annotations"] == 0 and len(facts["labels"]["empty"]) == 8 and audit_in_words(facts)
    assert all(row["dice"] == 1 for row in facts["baselines"])  # empty and empty is 1


@pytest.fixture(scope="module")
def kaggle(work):
    if not SHARED.is_dir(): pytest.skip("the real data sets are not beside the project (../shared)")
    return ts.open_data(SHARED / "data/kaggle", 128, cache=work / "cache")


def test_kaggle_without_patients(kaggle):
    start = time.perf_counter()
    facts = ts.audit(kaggle)
    print(f"audit of {len(kaggle)} slices: {time.perf_counter() - start:.1f} s")
    labels, leakage = facts["labels"], facts["leakage"]
    assert labels["rectangles"] == labels["annotations"] == 2146
    assert len(labels["empty"]) == 1 and labels["empty"][0].startswith("train/2369_")
    [sliver] = labels["slivers"]
    assert sliver["name"].startswith("train/176_") and labels["several"] == [sliver["name"]]
    assert facts["images"]["sizes"] == {"640 x 640": 2146} and facts["images"]["copies"] == []
    assert facts["images"]["channels_equal"] == facts["images"]["files_with_channels"] >= 200
    assert leakage["conclusion"] == "likely" and leakage["patients"] is None
    assert leakage["numbers"]["splits"]["test"]["leaked"] > 170 and leakage["pictures"]["splits"]["test"]["beats"] > .4
    scores = {row["baseline"]: row["dice"] for row in facts["baselines"]}
    assert labels["named"] == {"0": ["Tumor", 0], "1": ["0", 1099], "2": ["1", 1047]}
    assert (facts["healthy"]["learnt"], facts["healthy"]["empty"]) == (1502, 1)
    assert "91 %" in ts.verdict(facts)["healthy"] and ts.verdict(facts)["to_do"][0] == TO_DO
    assert leakage_in_words(kaggle) == leakage["sentence"]
    assert scores["all background"] == 0 and abs(scores["most alike slice copied"] - .68) < .01 and len(scores) == 3


def test_neighbours_in_the_lgg_set_are_no_copies(work):
    if not SHARED.is_dir(): pytest.skip("the real data sets are not beside the project (../shared)")
    lgg = ts.open_data(SHARED / "data/lgg", 128, cache=work / "cache")
    facts = ts.audit(lgg)
    print(facts["images"]["neighbours"], "pairs of neighbours,", facts["healthy"])
    assert facts["images"]["copies"] == [] and not any("copies" in sentence for sentence in ts.verdict(facts)["to_do"])
    assert facts["healthy"]["empty"] > .5 * facts["healthy"]["learnt"] and TO_DO not in ts.verdict(facts)["to_do"]


def test_the_report_on_kaggle_says_what_its_audit_says(kaggle, work):
    sentence = "Where a tumour is, not its outline: 2146 of 2146 annotations are filled rectangles."
    assert sentence in reported(kaggle, work / "kaggle")


def test_kaggle_with_patients_and_contours(kaggle, work):
    import subprocess
    import sys
    subprocess.run([sys.executable, SHARED / "tools/figshare_mat.py", work / "mat"], check=True, capture_output=True)
    figshare = ts.open_data(work / "mat", 128, cache=work / "cache")
    contours = expert_contours(kaggle, figshare, find_partners(kaggle, figshare))
    facts = ts.audit(ts.with_patients(kaggle, SHARED / "data/cheng/patients.csv"), contours)
    splits, rows = facts["leakage"]["patients"]["splits"], {row["baseline"]: row for row in facts["baselines"]}
    assert facts["labels"]["counted"] == "annotations"
    assert splits["valid"]["leaked"] == splits["valid"]["slices"] == 429
    assert (splits["test"]["leaked"], splits["test"]["slices"]) == (210, 215)
    others, expert = rows["the same, not of the patient"], rows["expert contour"]
    assert abs(others["dice"] - .31) < .015 and others["slices"] == 215
    assert abs(expert["dice"] - .56) < .01 and expert["slices"] == 183
    facts = ts.audit(kaggle, contours)  # patients from the contours: known for those only
    known = facts["leakage"]["patients"]["splits"]["test"]
    assert facts["patients_known"] == 1751 and known["known"] == 183 and known["leaked"] > 170
    assert facts["labels"]["rectangles"] == facts["labels"]["annotations"] == 2146 and split_state(kaggle) == "unknown"
