"Files as others have them: standard COCO, EXIF, arrays of any kind, damaged caches, archives and links that lead away."
import http.server
import json
import lzma
import os
import resource
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage
from scipy.io import savemat

import tumorseg as ts
from tumorseg.data import download
from tumorseg.data.alike import duplicates, thumbnails
from tumorseg.data.coco import (
    COCO_NAME,
    MAX_ANNOTATIONS,
    annotation_facts,
    coco_categories,
    coco_entries,
    coco_files,
    coco_sample,
    read_coco,
)
from tumorseg.data.figshare import figshare_entries
from tumorseg.data.images import as_picture, file_problem, inside, mask_to_square, open_picture, read_image
from tumorseg.data.slices import cached_slices, load_slices, save_slices

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
HEAD = np.pad(np.full((30, 30), 120, np.uint8), 9)  # 48 x 48


def picture(path, pixels=HEAD, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def coco(path, names=("a.png",), annotations=None, categories=("tumor",), write=(), **fields):
    "A COCO file with an annotation of category 1 on each image; pictures are written where `write` says."
    images = [dict(id=i, file_name=name, height=48, width=48, **fields) for i, name in enumerate(names)]
    if annotations is None: annotations = [dict(image_id=i) for i in range(len(names))]
    annotations = [dict(category_id=1, segmentation=SQUARE) | note for note in annotations]
    kinds = [dict(id=i, name=name) for i, name in enumerate(categories, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=kinds)))
    for place in write: picture(Path(place))
    return path


# ---- pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_picture_is_read_as_viewers_show_it(tmp_path, orientation, suffix):
    shown = np.zeros((16, 32), np.uint8)
    shown[:8, :16] = 200
    stored = {1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.T, 6: np.rot90(shown),
              7: shown[::-1, ::-1].T, 8: np.rot90(shown, -1)}[orientation]
    note = Image.Exif()
    note[274] = orientation
    path = picture(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=note)
    assert np.abs(read_image(path)[0].astype(int) - shown).max() < 10


def test_what_is_no_picture_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, kind in (("a.png", "GIF"), ("b.png", "WEBP"), ("c.png", "PPM"), ("d.jpg", "TGA")):
        picture(tmp_path / name, format=kind)
    assert (read_image(picture(tmp_path / "good.bmp"))[0] == HEAD).all()
    for name in ("a.png", "b.png", "c.png", "d.jpg"):
        with pytest.raises(ts.InputError, match="JPG, PNG, TIFF or BMP"): read_image(tmp_path / name)
    for name, words in (("pipe.png", "pipe"), ("", "folder"), ("gone.png", "not found"), ("x" * 300, "File name too")):
        with pytest.raises(ts.InputError, match=words): read_image(tmp_path / name)


def test_what_happens_inside_of_an_open_picture_is_told_with_its_name(tmp_path):
    path = picture(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ts.InputError, match="a.png: damaged"):
        with open_picture(path) as opened: opened.load()


SCALED = (HEAD // 120 * 255)[None]


@pytest.mark.parametrize("array", [
    HEAD / 255, (HEAD / 255).astype(np.float32), HEAD.astype(np.float16), HEAD.astype(np.uint16) * 257,
    HEAD.astype(">u2"), HEAD.astype(np.int16) * 10 - 500, HEAD.astype(np.int64), HEAD[None] / 255., HEAD[..., None] / 9,
    np.stack([HEAD] * 3) / 255, np.stack([HEAD] * 3, 2).astype(np.uint16)])
def test_an_array_is_scaled_like_a_file(array):
    assert (as_picture(array) == SCALED).all() and as_picture(array, 3).shape == (3, 48, 48)


def test_tensors_and_pil_are_pictures_too():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(HEAD)
    for scaled in (tensor / 255, tensor.bfloat16(), tensor.half()[None]):
        assert (as_picture(scaled.requires_grad_()) == SCALED).all()
    assert (as_picture(tensor) == HEAD).all() # bytes stay as they are
    for mode in ("L", "RGB", "RGBA", "LA", "P", "CMYK"):
        assert np.abs(as_picture(Image.fromarray(HEAD).convert(mode)).astype(int) - HEAD).max() < 3
    assert (as_picture(Image.fromarray(HEAD.astype(np.int32))) == SCALED).all()
    assert as_picture(np.stack([HEAD] * 5), 5).shape == (5, 48, 48)


@pytest.mark.parametrize("odd", [
    HEAD > 0, (HEAD > 0) * 1., (HEAD > 0).astype(np.uint8), np.full((8, 8), np.nan), np.array([[0, np.inf]]),
    HEAD[None, None], HEAD[0], np.float64(3), np.zeros((0, 8), np.uint8), HEAD.astype(complex), HEAD.astype(str),
    np.stack([HEAD] * 2), np.array([[None]]), [[1, 2]], None, np.broadcast_to(np.float32(2), (8000, 8000))])
def test_what_is_no_slice_is_refused_with_the_reason(odd):
    with pytest.raises(ts.InputError, match="^The picture: "): as_picture(odd)


def test_tens_of_thousands_of_specks_are_squared_in_one_pass(monkeypatch):
    specks, scaled, resize = np.zeros((512, 512), np.uint8), [], Image.Image.resize
    specks[::2, ::2] = 1
    monkeypatch.setattr(Image.Image, "resize", lambda *given: scaled.append(1) or resize(*given))
    assert mask_to_square(specks, 128).all() and len(scaled) == 1 # once for each speck took half a minute


@pytest.mark.parametrize("seed", range(30))
def test_no_part_of_a_mask_vanishes(seed):
    draw = np.random.default_rng(seed)
    height, width, size = draw.integers(3, 120, 3)
    mask = (ndimage.gaussian_filter(draw.normal(size=(height, width)), draw.uniform(.3, 4)) > .25).astype(np.uint8)
    square = mask_to_square(mask, int(size))
    shape = (max(1, round(height * size / max(height, width))), max(1, round(width * size / max(height, width))))
    top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    fitted = square[top:top + shape[0], left:left + shape[1]]
    parts, count = ndimage.label(mask)
    rows, columns = np.indices(mask.shape)
    for part in range(1, count + 1): # each has a tumour pixel at, or right beside, one of its own places
        y, x = rows[parts == part] * shape[0] // height, columns[parts == part] * shape[1] // width
        assert ndimage.maximum_filter(fitted, 3)[y, x].any()
    assert square.sum() == fitted.sum()


# ---- COCO: layouts


LAYOUTS = {
    "Roboflow": {"train/" + COCO_NAME: "train/a.png", "valid/" + COCO_NAME: "valid/b.png"},
    "val": {"train/" + COCO_NAME: "train/a.png", "Validation/" + COCO_NAME: "Validation/b.png"},
    "split folders, another name": {"train/labels.json": "train/a.png", "val/labels.json": "val/b.png"},
    "annotations and images": {"annotations/instances_train.json": "images/a.png",
                               "annotations/instances_val.json": "images/b.png"},
    "as COCO itself": {"annotations/instances_train2017.json": "train2017/a.png",
                       "annotations/instances_val2017.json": "val2017/b.png"},
    "as CVAT": {"annotations/instances_train.json": "images/train/a.png",
                "annotations/instances_validation.json": "images/validation/b.png"},
    "two beside images": {"train.json": "images/a.png", "val.json": "images/b.png"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_with_splits_is_found(tmp_path, layout):
    for path, image in LAYOUTS[layout].items(): coco(tmp_path / path, [Path(image).name], write=[tmp_path / image])
    entries, problems = coco_entries(tmp_path)
    assert [entry["split"] for entry in entries] == ["train", "valid"] and not problems
    assert [entry["name"] for entry in entries] == list(LAYOUTS[layout].values())
    assert len(coco_files(tmp_path)) == 4 and [coco_sample(entry, 24)[1].sum() for entry in entries] == [400, 400]


@pytest.mark.parametrize("path, images, splits", [
    ("annotations/instances_default.json", ["images/a.png", "images/b.png"], ["all", "all"]),
    ("annotations/instances_default.json", ["images/default/a.png", "images/default/b.png"], ["all", "all"]),
    ("result.json", ["a.png", "b.png"], ["all", "all"]), (COCO_NAME, ["images/a.png", "images/b.png"], ["all", "all"]),
    ("labels.json", ["images/train/a.png", "images/val/b.png"], ["train", "valid"]),
    ("labels.json", ["train/a.png", "test/b.png"], ["train", "test"])])
def test_a_single_json(tmp_path, path, images, splits):
    coco(tmp_path / path, [Path(image).name for image in images], write=[tmp_path / image for image in images])
    entries, problems = coco_entries(tmp_path)
    assert [entry["name"] for entry in entries] == images and not problems
    assert [entry["split"] for entry in entries] == splits


def test_names_with_their_folder_and_a_byte_order_mark(tmp_path):
    path = coco(tmp_path / "labels.json", ["images/train/a.png"], write=[tmp_path / "images/train/a.png"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    slices = ts.open_data(tmp_path, 24, cache=tmp_path / "cache")
    assert slices.table[["name", "split"]].values.tolist() == [["images/train/a.png", "train"]]


def test_what_is_not_clear_is_not_guessed(tmp_path):
    coco(tmp_path / "labels.json", write=[tmp_path / "images/train/a.png", tmp_path / "images/val/a.png"])
    assert "lies in" in coco_entries(tmp_path)[1][0]
    (tmp_path / "images/val/a.png").unlink()
    coco(tmp_path / "other.json", ["images/train/a.png"])
    assert "is in" in coco_entries(tmp_path)[1][0]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/settings.json").write_text("{}")
    for number in range(12): (tmp_path / f"elsewhere/{number}.json").write_text("[1]") # as LabelMe, one each
    assert coco_files(tmp_path / "elsewhere") == []


# ---- COCO: categories


def test_a_category_that_is_no_tumour_is_asked_about(tmp_path):
    notes = [dict(image_id=0), dict(image_id=0, category_id=2, segmentation=[[0, 0, 48, 0, 48, 48, 0, 48]])]
    coco(tmp_path / "train" / COCO_NAME, annotations=notes, categories=("tumor", "Brain"))
    picture(tmp_path / "train/a.png")
    assert coco_categories(tmp_path) == {1: ("tumor", 1), 2: ("Brain", 1)}
    with pytest.raises(ts.InputError, match="'tumor' .1 annotations.*'Brain' .1 annotations.*--categories 'tumor'"):
        ts.open_data(tmp_path, 24, cache=tmp_path / "cache")
    for choice in (["tumor"], [1], ["TUMOR"], ["1"]):
        [entry], _ = coco_entries(tmp_path, choice)
        assert coco_sample(entry, 24)[1].sum() == 400
    assert coco_sample(coco_entries(tmp_path, [1, "Brain"])[0][0], 24)[1].all()
    for choice in ([3], ["glioma"], []):
        with pytest.raises(ts.UsageError, match="Its categories are 1 'tumor'"): coco_entries(tmp_path, choice)
    assert len(annotation_facts(tmp_path)) == 2 # the audit sees both


def test_one_id_with_two_names(tmp_path):
    for split, name in (("train", "tumor"), ("test", "no_tumor")):
        coco(tmp_path / split / COCO_NAME, categories=(name,), write=[tmp_path / split / "a.png"])
    assert coco_categories(tmp_path) == {1: ("tumor or no_tumor", 2)}
    with pytest.raises(ts.InputError, match="no tumour"): coco_entries(tmp_path)


def test_a_category_without_annotations_does_not_matter(tmp_path):
    coco(tmp_path / "train" / COCO_NAME, categories=("tumor", "brain"), write=[tmp_path / "train/a.png"])
    assert len(coco_entries(tmp_path)[0]) == 1
    with pytest.raises(ts.UsageError, match="no annotation of the categories"): coco_entries(tmp_path, ["brain"])


def test_a_damaged_json_is_told_and_not_its_missing_categories(tmp_path):
    coco(tmp_path / "train" / COCO_NAME).write_text("{")
    entries, [problem] = coco_entries(tmp_path, ["tumor"])
    assert not entries and "is not JSON" in problem


def test_category_0_is_a_category(tmp_path):
    path = coco(tmp_path / "train" / COCO_NAME, ["a.png", "b.png"], [dict(image_id=0, category_id=0)],
                write=[tmp_path / "train/a.png", tmp_path / "train/b.png"])
    path.write_text(path.read_text().replace('{"id": 1, "name"', '{"id": 0, "name"'))
    table = ts.open_data(tmp_path, 48, cache=tmp_path / "cache").table
    assert table[["category", "label"]].values.tolist() == [[0, "box"], [0, ""]]


def test_the_area_of_the_bounding_box_is_right_too(tmp_path):
    diamond = [[24, 4, 44, 24, 24, 44, 4, 24]]
    notes = [dict(image_id=0, segmentation=diamond, area=area) for area in (800, 1600, 3000, 100, 10 ** 400)]
    coco(tmp_path / "train" / COCO_NAME, annotations=notes, write=[tmp_path / "train/a.png"])
    assert annotation_facts(tmp_path)["area"].tolist() == ["right", "right", "stale", "stale", "stale"]


# ---- COCO: what others write into a JSON


@pytest.mark.parametrize("patient, taken", [
    (None, ""), ("", ""), ("anna", "anna"), (7, "7"), (True, None), ({}, None), ([1], None), (2.5, None),
    ("a\rb", None), ("\ud800", None), ("\x1b[2J", None),
    pytest.param(10 ** 400, None, id="huge")])
def test_a_patient_is_a_name_or_unknown(tmp_path, patient, taken):
    path = coco(tmp_path / COCO_NAME, patient=patient)
    images, _, problems = read_coco(path)
    if taken is None: assert not images and len(problems) == 1
    else: assert images[0]["patient"] == taken and not problems


@pytest.mark.parametrize("change, words", [
    (dict(segmentation=[[10 ** 400, 1, 30, 10, 30, 30]]), "list of numbers"),
    (dict(segmentation=[[1, 2, 30, 10, float("nan"), 30]]), "list of numbers"),
    (dict(segmentation=[[0, 0, 48, 48] * 10_000]), "longer than any outline"),
    (dict(category_id=10 ** 30), "category_id"), (dict(image_id=10 ** 400), "image_id")])
def test_numbers_of_absurd_size_are_a_sentence(tmp_path, change, words):
    coco(tmp_path / "train" / COCO_NAME, annotations=[dict(image_id=0) | change], write=[tmp_path / "train/a.png"])
    for _ in range(2): # the second time not from a broken cache
        with pytest.raises(ts.InputError, match=words): ts.open_data(tmp_path, 24, cache=tmp_path / "cache")


@pytest.mark.parametrize("fields, words", [
    (dict(height=10 ** 6, width=10 ** 6), "far too many"), (dict(height=0), "0"), (dict(height=10 ** 400), "valid"),
    (dict(file_name="\ud800.png"), "no text"), (dict(file_name="m\udcfcll.png"), "no text"),
    (dict(file_name="a\0.png"), "leaves")])
def test_an_image_record_is_looked_at(tmp_path, fields, words):
    path = coco(tmp_path / COCO_NAME)
    content = json.loads(path.read_text())
    content["images"][0] |= fields
    path.write_text(json.dumps(content))
    images, _, problems = read_coco(path)
    assert not images and words in problems[0]
    assert annotation_facts(tmp_path).empty


def test_many_annotations_of_one_image_cost_no_memory(tmp_path):
    height = 2000
    notes = [dict(image_id=0, segmentation=[[5, 5, 1900, 5, 1900, 1900, 5, 1900]])] * 60
    path = coco(tmp_path / "train" / COCO_NAME, annotations=notes)
    path.write_text(path.read_text().replace(": 48", f": {height}"))
    picture(tmp_path / "train/a.png", np.zeros((height, height), np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    coco_sample(coco_entries(tmp_path)[0][0], 24)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000 # kB; together they are 240 MB
    coco(path, annotations=[dict(image_id=0)] * (MAX_ANNOTATIONS + 1))
    assert "more than" in coco_entries(tmp_path)[1][0]


def test_no_link_leads_out_of_the_folder(tmp_path):
    picture(tmp_path / "outside/a.png")
    coco(tmp_path / "set/train" / COCO_NAME, ["a.png", "sub/a.png", "b.png"], write=[tmp_path / "set/train/real.png"])
    (tmp_path / "set/train/a.png").symlink_to(tmp_path / "outside/a.png")
    (tmp_path / "set/train/sub").symlink_to(tmp_path / "outside")
    (tmp_path / "set/train/b.png").symlink_to("real.png") # within the folder it does no harm
    entries, problems = coco_entries(tmp_path / "set")
    assert [entry["name"] for entry in entries] == ["train/b.png"] and len(problems) == 2
    (tmp_path / "link").symlink_to(tmp_path / "set") # the folder that the user himself gives may be a link
    assert len(coco_entries(tmp_path / "link")[0]) == 1
    assert not inside(tmp_path / "set/train/sub", tmp_path / "set") and inside(tmp_path / "set", tmp_path / "set")
    assert not inside(tmp_path / "setting", tmp_path / "set")
    assert "link" in file_problem(tmp_path / "set/train/a.png", tmp_path / "set")


def test_a_pipe_among_the_pictures(tmp_path):
    coco(tmp_path / "train" / COCO_NAME, ["a.png", "b.png"], write=[tmp_path / "train/a.png"])
    os.mkfifo(tmp_path / "train/b.png")
    with pytest.raises(ts.InputError, match="b.png: is"): ts.open_data(tmp_path, 24, cache=tmp_path / "cache")
    assert "not a file" in file_problem(tmp_path / "train/b.png", tmp_path)


def test_a_name_that_is_no_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xfcmor.png"))
    picture(path)
    told = file_problem(path, tmp_path)
    assert "not UTF-8" in told and told.encode()
    row = dict(name=path.name, split="all", patient="", category=0, label="", height=48, width=48)
    with pytest.raises(ts.InputError, match="no text"):
        save_slices(tmp_path / "x", iter([(HEAD, HEAD * 0, row)]), 1, 1, 48)
    assert not (tmp_path / "x").exists()


# ---- the cache


def saved(folder):
    rows = [dict(name=f"{i}\r\n.png", split="train", patient="7\r", category=i, label="", height=48, width=48)
            for i in range(3)]
    save_slices(folder, ((HEAD[None], (HEAD > 0).astype(np.uint8), row) for row in rows), 3, 1, 48)


def test_the_cache_is_for_its_owner_and_keeps_every_name(tmp_path):
    saved(tmp_path / "key")
    slices = load_slices(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o700
    assert slices.table["name"][0] == "0\r\n.png" and slices.table["patient"][2] == "7\r"
    assert (slices.full_mask(2) == (HEAD > 0)).all() and slices.masks.max() == 1


def spoil(path, seed):
    content, draw = bytearray(path.read_bytes()), np.random.default_rng(seed)
    how = seed % 4
    if how == 0: content = content[:int(draw.integers(0, len(content)))]
    if how == 1: content += b"\0"
    if how == 2: content[int(draw.integers(0, min(128, len(content))))] ^= int(draw.integers(1, 256))
    if how == 3: content = bytes(draw.integers(0, 256, len(content), np.uint8))
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "runs.npy", "bounds.npy", "table.csv", "seal.json"])
@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_cache_is_made_anew(tmp_path, name, seed):
    for _ in range(2): cached_slices("key", saved, tmp_path)
    spoil(tmp_path / "key" / name, seed)
    slices = cached_slices("key", saved, tmp_path)
    assert slices.images.shape == (3, 1, 48, 48) and (slices.images == HEAD).all() and (slices.full_mask(1) < 2).all()
    assert slices.table["category"].tolist() == [0, 1, 2] and slices.masks.max() == 1


def test_a_cache_with_parts_missing_or_in_the_way(tmp_path):
    cached_slices("key", saved, tmp_path)
    for name in ("masks.npy", "bounds.npy", "seal.json"):
        (tmp_path / "key" / name).unlink()
        assert len(cached_slices("key", saved, tmp_path)) == 3
    with open(tmp_path / "key/masks.npy", "r+b") as file: # same size and header: a mask of 7
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(ts.InputError, match="a mask was changed"): load_slices(tmp_path / "key")
    np.save(tmp_path / "key/masks.npy", np.zeros((3, 48, 48))) # another type of numbers
    with pytest.raises(ts.InputError, match="a file was changed"): load_slices(tmp_path / "key")
    (tmp_path / "other").write_text("a file in its place")
    assert len(cached_slices("other", saved, tmp_path)) == 3


# ---- near copies


def test_near_copies_of_one_patient_are_told_apart():
    draw = np.random.default_rng(0).integers(0, 255, (1, 32, 32)).astype(np.uint8)
    images = np.stack([draw, draw, draw, draw, draw])
    table = ts.Slices(images, np.zeros((5, 32, 32), np.uint8), pd.DataFrame(dict(
        name=list("abcde"), split="all", patient=["p", "p", "q", "", ""], category=0, label="", height=32, width=32)))
    pairs = duplicates(table, thumbnails(table))
    one = set(zip(pairs["name"][pairs["same_patient"]], pairs["other"][pairs["same_patient"]]))
    assert len(pairs) == 10 and one == {("a", "b")}


# ---- MATLAB files, archives, servers


@pytest.fixture
def cheng(tmp_path):
    for number in (1, 2, 3): (tmp_path / f"{number}.mat").write_bytes(b"")
    savemat(tmp_path / "cvind.mat", {"cvind": np.array([[2., 1., 2.]])})
    return tmp_path


def test_one_wrong_byte_in_an_older_matlab_file_does_no_harm(cheng):
    good = (cheng / "cvind.mat").read_bytes()
    assert sorted(entry["split"] for entry in figshare_entries(cheng)[0]) == ["fold1", "fold2", "fold2"]
    (cheng / "cvind.mat").write_bytes(good[:184] + b"\xff" + good[185:]) # scipy reads out of bounds, and Python ends
    entries, [problem] = figshare_entries(cheng)
    assert "cvind.mat: is damaged" in problem and [entry["split"] for entry in entries] == ["all"] * 3


@pytest.mark.parametrize("folds", [[1e300, 1, 2], [1e9, 1, 2], [100, 1, 2], [0, 1, 2], [1.5, 1, 2], [np.nan, 1, 2]])
def test_folds_are_small_whole_numbers(cheng, folds):
    savemat(cheng / "cvind.mat", {"cvind": np.array([folds])})
    assert "whole numbers from 1 to 99" in figshare_entries(cheng)[1][0]


def test_the_child_that_reads_imports_nothing_from_the_working_folder(cheng):
    (cheng / "scipy.py").write_text("open('ran', 'w')")
    code = "from tumorseg.data.figshare import figshare_entries as f; print(f('.'))"
    kept = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=cheng, capture_output=True, text=True, env=kept)
    assert "fold1" in done.stdout and not (cheng / "ran").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_archive_is_a_sentence(tmp_path, method, seed):
    draw = np.random.default_rng(seed)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("1.mat", bytes(draw.integers(0, 20, 3000, np.uint8)))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for place in draw.integers(35, len(content) - 80, 20): content[place] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ts.InputError, match="a.zip: .*Delete it"): download.unpack(tmp_path / "a.zip", tmp_path)


def test_lzma_errors_of_another_kind(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive: archive.writestr("1.mat", b"-")
    for error in (lzma.LZMAError("Corrupt"), OSError("Invalid data stream")):
        def read(*_, error=error): raise error
        monkeypatch.setattr(zipfile.ZipFile, "read", read)
        with pytest.raises(ts.InputError, match="'1.mat' is damaged"): download.unpack(tmp_path / "a.zip", tmp_path)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "diary.txt").write_text("mine")
    (tmp_path / "to/1.mat").symlink_to(tmp_path / "diary.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive: archive.writestr("1.mat", "theirs")
    download.unpack(tmp_path / "a.zip", tmp_path / "to")
    assert (tmp_path / "diary.txt").read_text() == "mine" and (tmp_path / "to/1.mat").read_text() == "theirs"


@pytest.mark.parametrize("limit, value, words", [
    ("_MAX_MEMBERS", 5, "has 6 files"), ("_MAX_BYTES", 50, "would fill 60")])
def test_an_archive_has_its_limits(tmp_path, monkeypatch, limit, value, words):
    monkeypatch.setattr(download, limit, value)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(6): archive.writestr(f"{number}.mat", b"0123456789")
    (tmp_path / "to").mkdir()
    with pytest.raises(ts.InputError, match=words): download.unpack(tmp_path / "a.zip", tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_a_server_that_trickles_is_left(tmp_path, monkeypatch):
    pause = threading.Event() # never set; time.sleep is replaced below
    listing = json.dumps([dict(id=7, name="a.zip", size=1_000_000, computed_md5="0" * 32)]).encode()

    class Slow(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_): pass

        def do_GET(self):
            asked = self.path == "/articles/5/files"
            self.send_response(200)
            self.send_header("Content-Length", str(len(listing) if asked else 1_000_000))
            self.end_headers()
            if asked: return self.wfile.write(listing)
            try:
                for _ in range(200):
                    self.wfile.write(b"x" * 100)
                    pause.wait(.05)
            except OSError: pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(download, "_PATIENCE", .3)
    monkeypatch.setattr(download, "_RATE", 10_000)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    with pytest.raises(ts.InputError, match="too slow"):
        download.download_article(5, tmp_path, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    assert (tmp_path / "a.zip.part").stat().st_size < 200 * 100 * 5
