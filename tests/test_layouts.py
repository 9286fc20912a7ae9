"The folders that people really have: each is read rightly, or one sentence says what it is and what to do."
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tumorseg as ts
from tumorseg.data.patients import GUESS, patients_table, split_in_words, split_state, with_patients
from tumorseg.data.slices import Slices
from tumorseg.data.splits import choose_folds, load_folds

ROWS, COLUMNS = np.mgrid[:40, :40]
BLOB = ((ROWS - 18) ** 2 + (COLUMNS - 22) ** 2 < 40).astype(np.uint8)


def head(seed):
    "A picture like no other: its noise is its own."
    return np.random.default_rng(seed).integers(0, 200, (40, 40), np.uint8) // 2 + BLOB * 90


def put(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pairs(folder, images="images", masks="masks", count=3, first=0, suffix=""):
    for number in range(first, first + count):
        put(folder / images / f"s{number}.png", head(number))
        put(folder / masks / f"s{number}{suffix}.png", BLOB * 255)


@pytest.fixture
def base(tmp_path): return tmp_path / "set"


@pytest.fixture
def opened(tmp_path): return lambda folder, **options: ts.open_data(folder, 32, cache=tmp_path / "cache", **options)


def refused(opened, folder, **options):
    with pytest.raises(ts.InputError) as caught: opened(folder, **options)
    return str(caught.value)


# ---- pictures and masks

@pytest.mark.parametrize("images, masks, suffix", [
    ("images", "masks", ""), ("Images", "Masks", ""), ("image", "mask", ""), ("IMAGES", "MASK", "_mask"),
    ("images", "labels", ""), ("", "", "_mask"), ("", "", "_Mask"),
])
@pytest.mark.parametrize("split", ["", "train", "Training", "val"])
def test_pictures_and_masks(base, opened, images, masks, suffix, split):
    pairs(base / split, images, masks, suffix=suffix)
    table = opened(base).table
    wanted = {"": "all", "Training": "train", "val": "valid"}.get(split, split)
    assert len(table) == 3 and set(table["split"]) == {wanted} and set(table["label"]) == {"contour"}


@pytest.mark.parametrize("valid", ["val", "valid", "Validation", "VAL"])
def test_every_name_of_the_validation_split(base, opened, valid, capsys):
    for part, first in (("train", 0), (valid, 10), ("Testing", 20)): pairs(base / part, first=first)
    assert opened(base).table["split"].tolist() == ["train"] * 3 + ["valid"] * 3 + ["test"] * 3
    assert capsys.readouterr().err == ""


def test_splits_inside_the_folders(base, opened):
    for part, first in (("train", 0), ("val", 10)): pairs(base, f"images/{part}", f"masks/{part}", first=first)
    table = opened(base).table
    assert table["split"].tolist() == ["train"] * 3 + ["valid"] * 3 and table["name"][3] == "images/val/s10.png"
    (base / "masks/val").rename(base / "masks/other")
    assert "images/val/s10.png: has no mask" in refused(opened, base)


def test_a_folder_for_each_patient(base, opened, capsys):
    for patient, first in (("ann", 0), ("bob", 10)): pairs(base / patient, "", "", 2, first, "_mask")
    assert opened(base).table["patient"].tolist() == ["ann", "ann", "bob", "bob"]
    assert "its 2 folders are taken for 2 patients" in capsys.readouterr().err
    for part in ("train", "test"): shutil.copytree(base / "ann", base.parent / f"parts/{part}/{part}-ann")
    assert opened(base.parent / "parts").table["patient"].tolist() == ["train-ann"] * 2 + ["test-ann"] * 2
    for name in ("ann", "bob"): (base / name).rename(base / dict(ann="benign", bob="malignant")[name])
    assert set(opened(base).table["patient"]) == {""} # a diagnosis is nobody


def test_what_is_not_read_is_named(base, opened, capsys):
    pairs(base / "train")
    pairs(base / "holdout", count=2)
    assert len(opened(base)) == 3
    assert "holdout/images/ (2), holdout/masks/ (2)" in capsys.readouterr().err


# ---- YOLO and COCO

@pytest.fixture
def yolo(base):
    for part in ("train", "valid"):
        for number, text in enumerate(("0 0.5 0.5 0.5 0.25", "0 0.2 0.2 0.8 0.2 0.5 0.7", None)):
            put(base / part / f"images/{number}.jpg", head(number + 10 * (part == "valid")))
            (base / part / "labels").mkdir(exist_ok=True)
            if text: (base / part / f"labels/{number}.txt").write_text(text + "\n")
    (base / "data.yaml").write_text("train: ../../../etc\nnc: 1\nnames: [tumor]\n")
    return base


def test_yolo(yolo, opened):
    slices = opened(yolo)
    assert slices.table["label"].tolist() == ["box", "contour", ""] * 2
    assert slices.table["split"].tolist() == ["train"] * 3 + ["valid"] * 3
    box = slices.full_mask(0)
    assert box.sum() == 20 * 10 and box[15:25, 10:30].all()
    assert abs(int(slices.full_mask(1).sum()) - .15 * 1600) < 30 # half of .6 x .5


def test_yolo_with_the_splits_inside(yolo, opened):
    for kind in ("images", "labels"):
        (yolo / kind).mkdir()
        for part in ("train", "valid"): (yolo / part / kind).rename(yolo / kind / dict(valid="val").get(part, part))
    assert opened(yolo).table["split"].tolist() == ["train"] * 3 + ["valid"] * 3


@pytest.mark.parametrize("text, words", [
    ("0 0.5 0.5 0.1", "3 numbers"), ("7 0.5 0.5 0.1 0.1", "class '7'"), ("0 nan 0.5 0.1 0.1", "not finite"),
    ("0 0.5 0.5 3 0.1", "outside the frame"), ("tumor 0.5 0.5 0.1 0.1", "class 'tumor'"),
    ("0 a b c d", "could not convert"), ("0 1e308 0.5 1e308 0.1", "not a list of numbers"),
    ("\n".join(["0 .5 .5 .1 .1"] * 1001), "1001 objects"),
])
def test_yolo_that_is_wrong(yolo, opened, text, words):
    (yolo / "train/labels/0.txt").write_text(text)
    told = refused(opened, yolo)
    assert "train/labels/0.txt" in told and words in told, told


BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9)) + "names: *a8"


@pytest.mark.parametrize("text", ["", "names: 3", "names: []", "- a", "names: [a", "!!python/object:os.system x",
                                  "names: {x: tumor}", "[" * 5000, "names: [[a]]", BOMB])
def test_a_data_yaml_that_is_none(yolo, opened, text):
    (yolo / "data.yaml").write_text(text)
    assert "data.yaml: does not name the classes" in refused(opened, yolo)
    (yolo / "data.yaml").unlink()
    assert "no data.yaml. Add it" in refused(opened, yolo)


def coco(folder, names, name="_annotations.coco.json", images=""):
    "One picture for each category, with a box of it."
    box = [[5, 5, 25, 5, 25, 25, 5, 25]]
    content = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in names.items()])
    for row, number in enumerate(names):
        put(folder / images / f"{row}.png", head(row + len(str(folder))))
        content["images"].append(dict(id=row, file_name=f"{row}.png", height=40, width=40))
        content["annotations"].append(dict(id=row, image_id=row, category_id=number, segmentation=box))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["COCO", "YOLO"])
def test_categories_are_chosen(base, yolo, opened, kind):
    if kind == "COCO":
        shutil.rmtree(base)
        coco(base / "train", {0: "tumor", 1: "no_tumor"})
    else:
        (base / "data.yaml").write_text("names: {0: tumor, 1: No Tumor}")
        (base / "train/labels/1.txt").write_text("1 0.5 0.5 0.9 0.9\n")
        for path in (base / "valid/labels").iterdir(): path.unlink()
    told = refused(opened, base)
    assert "--categories" in told and "tumor" in told and "annotation" in told
    for choice in ([0], ["tumor"]):
        slices = opened(base, categories=choice)
        assert (slices.areas > 0).tolist() == [True, *[False] * (len(slices) - 1)]
    assert (opened(base, categories=[0, 1]).areas > 0).sum() == 2 # another key of the cache
    with pytest.raises(ts.UsageError, match="glioma"): opened(base, categories=["glioma"])


def test_categories_of_a_layout_without(base, opened):
    pairs(base)
    with pytest.raises(ts.UsageError, match="no categories to choose from"): opened(base, categories=[1])


def test_standard_coco(base, opened):
    for part in ("train", "val"):
        coco(base, {1: "tumor", 2: "other"}, f"annotations/instances_{part}.json", f"images/{part}")
    assert opened(base).table["split"].tolist() == ["train"] * 2 + ["valid"] * 2


def test_coco_without_splits(base, opened):
    coco(base, {1: "tumor", 2: "other"}, "annotations/instances_default.json", "images") # as CVAT exports it
    assert opened(base).table["split"].tolist() == ["all"] * 2
    coco(base.parent / "beside", {1: "tumor"}, "coco.json")
    assert len(opened(base.parent / "beside")) == 1


# ---- what cannot be read says what it is

def test_a_folder_too_high_and_one_too_low(base, opened, capsys):
    pairs(base / "inner/train")
    pairs(base / "inner/test", first=10)
    assert len(opened(base)) == 6 and "inner/, which is taken" in capsys.readouterr().err
    for low in ("inner/train/images", "inner/test/masks"): assert "Give that folder" in refused(opened, base / low)
    assert opened(base / "inner/train").table["split"].tolist() == ["all"] * 3
    assert "is only one split of the data set in" in capsys.readouterr().err
    shutil.copytree(base / "inner", base / "second")
    assert "holds 2 data sets, inner, second" in refused(opened, base)


@pytest.mark.parametrize("files, words", [
    (["annotations/a.xml", "JPEGImages/a.jpg"], ["1 XML file in annotations/", "1 picture in JPEGImages/", "as COCO"]),
    (["a.json", "a.jpg"], ["1 JSON file", "LabelMe", "COCO"]),
    (["a.jpg", "b.jpg"], ["2 pictures", "without masks", "predict", "--healthy"]),
    (["p1/t1.nii.gz"], ["1 NIfTI volume in p1/", "PNG"]), (["p1/i1.dcm", "p1/i2.dcm"], ["2 DICOM files", "PNG"]),
    (["set.zip"], ["1 archive", "Unpack"]), (["labels/a.txt", "pictures/a.jpg"], ["1 text file", "data.yaml"]),
    ([], ["no picture"]),
])
def test_what_was_found_is_said(base, opened, files, words):
    base.mkdir()
    for name in files:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    told = refused(opened, base)
    for word in [*words, "not a layout that is known", "images/ and masks/"]: assert word in told, told


def test_no_folder_at_all(base, opened, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK")
    assert "is an archive. Unpack it" in refused(opened, tmp_path / "set.zip")
    (tmp_path / "a.json").write_text("{}")
    assert "is a file, not a folder" in refused(opened, tmp_path / "a.json")
    told = refused(opened, "x" * 5000)
    assert "cannot be opened" in told and len(told) < 400
    assert "not a folder" in refused(opened, "nul\0byte")


@pytest.mark.parametrize("size", [0, -5, 1025, 20_000, 10 ** 18])
def test_sizes_that_are_none(base, size):
    pairs(base)
    with pytest.raises(ts.UsageError, match="1 to 1024"): ts.open_data(base, size)


# ---- files of strangers

def test_links_out_of_the_folder_are_refused(base, opened, tmp_path):
    pairs(base)
    put(tmp_path / "private.png", head(99))
    (base / "images/s0.png").unlink()
    (base / "images/s0.png").symlink_to(tmp_path / "private.png")
    assert "s0.png: is a link that leads out of the folder" in refused(opened, base)
    (base / "images/s0.png").unlink()
    (base / "images/s0.png").symlink_to(base / "images/s1.png") # within it is good
    assert len(opened(base)) == 3
    shutil.move(base / "masks", tmp_path / "elsewhere")
    (base / "masks").symlink_to(tmp_path / "elsewhere")
    assert "link" in refused(opened, base)
    outside = tmp_path / "healthy"
    outside.mkdir()
    (outside / "a.png").symlink_to(tmp_path / "private.png")
    (base / "masks").unlink()
    shutil.move(tmp_path / "elsewhere", base / "masks")
    assert "link" in refused(opened, base, healthy=outside)


def test_a_name_that_is_no_utf8(base, opened):
    pairs(base)
    for kind in ("images", "masks"): os.rename(base / kind / "s0.png", os.fsencode(base / kind) + b"/t\xfcmor.png")
    told = refused(opened, base)
    assert "not UTF-8" in told and "Rename it" in told and told.encode()


def test_folds_that_are_too_many(tmp_path):
    content = dict(made="patients", count=2 ** 63, seed=0, fold={"a": 1}, fingerprint="")
    (tmp_path / "folds.json").write_text(json.dumps(content))
    with pytest.raises(ts.InputError, match="not numbered"): load_folds(tmp_path / "folds.json")


# ---- splits and patients

def test_a_validation_share_of_train(base, opened, capsys):
    pairs(base / "train", count=20)
    chosen = opened(base, split="")
    assert chosen.table["split"].value_counts().to_dict() == {"train": 16, "valid": 4}
    told = capsys.readouterr().err
    assert "4 of 20 of train are taken" in told and "near copies" in told and "no test slices" in told
    assert opened(base, split="").table.equals(chosen.table) # and the next time the same
    pairs(base / "test", first=30)
    capsys.readouterr()
    assert opened(base, split="").table["split"].value_counts().to_dict() == {"train": 16, "valid": 4, "test": 3}
    assert "no test" not in capsys.readouterr().err
    known = pd.DataFrame(dict(name=[f"s{i}.png" for i in range(40)], patient=[f"p{i // 4}" for i in range(40)]))
    chosen = opened(base, split="", patients=known)
    assert "by patients" in capsys.readouterr().err and split_state(chosen) == "separate"


def test_a_split_at_random(base, opened):
    for number in range(20): # each picture twice, the second a little brighter
        for copy in (0, 1):
            put(base / f"images/{number}-{copy}.png", head(number) + copy * 3)
            put(base / f"masks/{number}-{copy}.png", BLOB)
    assert "--split random" in refused(opened, base, split="") and "patients" in refused(opened, base, split="")
    assert "--split random" in refused(opened, base, split="patients")
    chosen = opened(base, split="random")
    picture = chosen.table["name"].str.extract("([0-9]+)-", expand=False)
    assert chosen.table.groupby(picture)["split"].nunique().max() == 1
    assert set(chosen.table["split"]) == {"train", "valid", "test"} and chosen.folds.made == "random"
    assert split_state(chosen) == "unknown" and "drawn at random" in split_in_words(chosen)
    assert choose_folds(opened(base), "random") == chosen.folds
    with pytest.raises(ts.UsageError, match="official, patients, authors, random"): opened(base, split="randomly")


def made(names, patients=""):
    images = np.stack([head(row)[None] for row in range(len(names))])
    table = pd.DataFrame(dict(name=names, split="test", patient=patients, category=1, label="contour", height=40,
                              width=40))
    return Slices(images, np.repeat(BLOB[None], len(names), 0), table)


def test_separate_only_where_patients_are_known():
    for patients, state in (("", "unknown"), (["a", "b", ""], "unknown"), (f"{GUESS}1", "unknown"), ("a", "separate")):
        slices = made(["1.png", "2.png", "3.png"], patients) # all in test
        assert split_state(slices) == state
        assert ("Every patient is on one side" in split_in_words(slices)) == (state == "separate")


@pytest.mark.parametrize("columns", [("filename", "patient_id"), ("File Name", "Patient ID"), ("image", "subject"),
                                     ("path", "PatientID"), ("name", "patient")])
@pytest.mark.parametrize("written", ["images/{}.png", "{}.png", "{}", "set/images/{}.png", ".\\images\\{}.png",
                                     "{}.dcm"])
def test_tables_as_people_write_them(tmp_path, columns, written):
    slices = made([f"images/s{i}.png" for i in range(4)])
    rows = [(written.format(f"s{i}"), f"p{i}") for i in (2, 0, 3, 77)]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "p.csv", index=False)
    assert with_patients(slices, tmp_path / "p.csv").table["patient"].tolist() == ["p0", "", "p2", "p3"]


@pytest.mark.parametrize("number", ["3", "003", "3.0", " 3"])
def test_numbers_as_people_write_them(number):
    table = pd.DataFrame(dict(Number=[number], patient=["p"]))
    assert with_patients(made(["3_jpg.rf.1.jpg", "4.jpg"]), table).table["patient"].tolist() == ["p", ""]


def test_a_name_that_can_be_two_slices():
    slices = made(["train/1.png", "test/1.png", "test/2.png"])
    table = pd.DataFrame(dict(filename=["1.png", "2.png"], patient=["a", "b"]))
    with pytest.raises(ts.InputError, match="1.png can be train/1.png or test/1.png"): with_patients(slices, table)
    table["filename"] = ["test/1.png", "2.png"]
    assert with_patients(slices, table).table["patient"].tolist() == ["", "a", "b"]
    table = pd.DataFrame(dict(filename=["2.png", "test/2.png"], patient=["a", "b"]))
    with pytest.raises(ts.InputError, match="two patients"): with_patients(slices, table)


def test_the_table_to_fill_in(tmp_path):
    slices = made(["1.png", "2.png", "3.png", "90.png", "x.png"], ["ann", "", "", "", ""])
    slices.images[1] = slices.images[0] // 2 + 5 # the next number, and alike
    slices.images[4] = slices.images[3] + 1 # a near copy
    table = patients_table(slices)
    assert table.columns.tolist() == ["name", "number", "patient", "guess"]
    assert table["number"].tolist() == [1, 2, 3, 90, -1]
    assert table["patient"][0] == table["patient"][1] == "ann" and table["guess"][0] == "" != table["guess"][1]
    assert table["patient"][3] == table["patient"][4] != table["patient"][2] and table["guess"][4] == "near copies"
    table.to_csv(tmp_path / "patients.csv", index=False)
    filled = with_patients(slices, tmp_path / "patients.csv")
    assert split_state(filled) == "unknown" and "a guess" in split_in_words(filled)


# ---- slices without tumour

@pytest.fixture
def healthy(tmp_path):
    for number in range(30): # each twice
        put(tmp_path / f"normals/a/{number // 2}-{number % 2}.png", head(500 + number // 2) + number % 2)
    return tmp_path / "normals"


def test_healthy_slices(base, opened, healthy):
    for part, first, count in (("train", 0, 12), ("val", 20, 4), ("test", 30, 4)):
        pairs(base / part, first=first, count=count)
    plain, slices = opened(base), opened(base, healthy=healthy)
    table = slices.table
    added = table[table["source"] == "normals"]
    assert len(slices) == 50 and added["split"].value_counts().to_dict() == {"train": 18, "valid": 6, "test": 6}
    assert added["patient"].nunique() == 15 and added.groupby("patient")["split"].nunique().max() == 1
    assert set(added["category"]) == {0} and set(added["label"]) == {""}
    assert added["name"].str.startswith("normals/a/").all()
    assert not slices.areas[added.index].any() and slices.full_mask(added.index[0]).shape == (40, 40)
    rows = table.index[table["source"] == ""]
    assert (slices.images[rows] == plain.images).all() and [*table["name"][rows]] == [*plain.table["name"]]
    assert all((slices.full_mask(row) == BLOB).all() for row in rows) and slices.folder == base
    assert opened(base, healthy=healthy).fingerprint() == slices.fingerprint() != plain.fingerprint()
    assert split_state(slices) == "unknown" # nobody knows those with a tumour


def test_healthy_slices_are_as_the_data_is(base, opened, healthy, tmp_path):
    for number in range(3):
        put(base / f"images/{number}.png", np.stack([head(number)] * 2 + [BLOB * 200], 2))
        put(base / f"masks/{number}.png", BLOB)
    slices = opened(base, healthy=healthy)
    assert slices.images.shape == (33, 3, 32, 32) and set(slices.table["split"]) == {"all"}
    known = pd.DataFrame(dict(name=[f"{number}.png" for number in range(3)], patient=["a", "b", "c"]))
    chosen = opened(base, healthy=healthy, patients=known, split="patients", folds=3)
    assert split_state(chosen) == "separate" and len(chosen.folds.fold) == 33


def test_healthy_slices_that_cannot_be_read(base, opened, healthy):
    pairs(base)
    (healthy / "a/broken.png").write_bytes(b"no picture")
    (healthy / "a/cut.png").write_bytes((healthy / "a/0-0.png").read_bytes()[:200])
    told = refused(opened, base, healthy=healthy)
    assert "broken.png" in told and "cut.png" in told
    shutil.rmtree(healthy / "a")
    assert "has no pictures" in refused(opened, base, healthy=healthy)
    assert "not a folder" in refused(opened, base, healthy=healthy / "gone")


def test_tumours_are_not_taken_for_healthy(base, opened, healthy, capsys):
    pairs(base)
    put(healthy / "glioma/1.png", head(1))
    assert "glioma: holds tumours by its name" in refused(opened, base, healthy=healthy)
    (healthy / "a").rename(healthy / "no_tumor")
    assert len(opened(base, healthy=healthy)) == 33 and "glioma/ (1)" in capsys.readouterr().err
    pairs(base.parent / "flat", "", "", suffix="_mask")
    assert "is a mask by its name" in refused(opened, base, healthy=base.parent / "flat")
