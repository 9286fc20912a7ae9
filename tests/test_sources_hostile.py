"Files that are not what they should be: one sentence each that names the file, never a crash, never gigabytes."
import resource
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import tumorseg as ts
from tumorseg.data.coco import COCO_NAME


def slice_fields(**changes):
    rows, columns = np.mgrid[:64, :64]
    mask = ((rows - 30) ** 2 + (columns - 25) ** 2 < 64).astype(np.uint8)
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    border = np.stack([26 + 8 * np.cos(angle), 31 + 8 * np.sin(angle)], 1).reshape(1, -1)
    return dict(PID=np.array([[49], [48]], np.uint16), label=np.array([[2.]]), tumorBorder=border,
                image=(rows * 9 + mask * 200).astype(np.int16).T, tumorMask=mask.T) | changes


def write(path, **changes):
    with h5py.File(path, "w") as file:
        for name, value in slice_fields(**changes).items():
            if value is not None: file[f"cjdata/{name}"] = value


def problems(folder, tmp_path, **options):
    with pytest.raises(ts.InputError) as caught: ts.open_data(folder, size=32, cache=tmp_path / "cache", **options)
    assert not list((tmp_path / "cache").glob("*")), "something was kept of what could not be read"
    return caught.value.problems


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mat").mkdir()
    write(tmp_path / "mat/1.mat")
    return tmp_path / "mat"


def test_the_good_one_is_good(folder, tmp_path):
    slices = ts.open_data(folder, size=64, cache=tmp_path / "cache")
    assert (slices.masks[0] == slice_fields()["tumorMask"].T).all() and slices.table.iloc[0]["patient"] == "10"
    assert slices.images[0, 0].max() == 255 and slices.images[0, 0].min() == 0


def test_all_problems_together(folder, tmp_path):
    (folder / "2.mat").write_text("not a slice")
    savemat(folder / "3.mat", {"cjdata": {"label": 1}})
    write(folder / "4.mat", tumorMask=np.ones((64, 63), np.uint8))
    write(folder / "5.mat", PID=None)
    (folder / "6.mat").write_bytes((folder / "1.mat").read_bytes()[:1500])
    (folder / "7.mat").write_bytes(b"")
    told = problems(folder, tmp_path)
    assert [sentence.split(": ")[0][-5:] for sentence in told] == ["2.mat", "3.mat", "4.mat", "5.mat", "6.mat", "7.mat"]
    expected = ["not a MATLAB v7.3", "-v7.3", "63", "lacks the field PID", "cut off", "cut off"]
    for sentence, words in zip(told, expected, strict=True): assert words in sentence


@pytest.mark.parametrize("field, value, words", [
    ("tumorMask", np.full((64, 64), 2, np.uint8), "other than 0 and 1"),
    ("tumorMask", np.zeros((64, 64), np.uint8), "mask of 0 pixels"),
    ("image", np.zeros((64, 64, 3), np.int16), "mask of shape|two dimensions"),
    ("image", np.full((64, 64), np.nan), "finite"),
    ("image", np.zeros((0, 64), np.int16), "two dimensions|shape"), ("label", np.array([[0.5]]), "label"),
    ("label", np.array([[np.nan]]), "label"),
    ("label", np.array([[np.inf]]), "label"),
    ("PID", np.array([[10], [47]], np.uint16), "patient id"), ("PID", np.full((64, 1), 2.0 ** 60), "."),
    ("PID", np.zeros((500, 1), np.uint16), "too many"),
    ("tumorBorder", np.ones((1, 7)), "list of points"), ("tumorBorder", np.full((1, 60), np.inf), "points"),
    ("tumorBorder", slice_fields()["tumorBorder"] * 2, "tumorBorder around"), ("image", b"text", "no numbers"),
    ("image", np.zeros((64, 64), [("real", "f4"), ("imag", "f4")]), "no numbers"),
])
def test_a_field_that_is_wrong(folder, tmp_path, field, value, words):
    write(folder / "1.mat", **{field: value})
    [told] = problems(folder, tmp_path)
    assert told.startswith(str(folder / "1.mat")) and any(word in told for word in words.split("|")), told


def test_absurd_dimensions_cost_nothing(folder, tmp_path):
    absurd = [((10 ** 6, 10 ** 6), (64, 64)), ((10 ** 9, 10 ** 9, 10 ** 9), (8, 8, 8)), ((64, 64), (30_000, 30_000))]
    for number, (shape, chunks) in enumerate(absurd, 2):
        write(folder / f"{number}.mat", image=None)
        with h5py.File(folder / f"{number}.mat", "a") as file:
            maxshape = (None,) * len(shape)
            file["cjdata"].create_dataset("image", shape, "u1", maxshape=maxshape, chunks=chunks, compression="gzip")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert ["too many values" in sentence for sentence in problems(folder, tmp_path)] == [True] * 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000 # kB


def test_nothing_is_read_from_other_files(folder, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file: file["image"] = slice_fields()["image"]
    (tmp_path / "raw.bin").write_bytes(bytes(64 * 64))
    for number in (2, 3, 4, 5): write(folder / f"{number}.mat", image=None)
    with h5py.File(folder / "2.mat", "a") as file: file["cjdata/image"] = h5py.ExternalLink(str(secret), "image")
    with h5py.File(folder / "3.mat", "a") as file:
        file["cjdata"].create_dataset("image", (64, 64), "u1", external=[(str(tmp_path / "raw.bin"), 0, 4096)])
    with h5py.File(folder / "4.mat", "a") as file:
        layout = h5py.VirtualLayout((64, 64), "i2")
        layout[:] = h5py.VirtualSource(str(secret), "image", (64, 64))
        file["cjdata"].create_virtual_dataset("image", layout)
    with h5py.File(folder / "5.mat", "a") as file:
        file["other"] = slice_fields()["image"]
        file["cjdata/image"] = np.array([[file["other"].ref]], h5py.ref_dtype)
    with h5py.File(folder / "6.mat", "w") as file: file["cjdata"] = h5py.ExternalLink("1.mat", "cjdata")
    told = problems(folder, tmp_path)
    assert len(told) == 5 and all("no numbers of its own" in sentence for sentence in told[:4]) and "cjdata" in told[4]


def test_folds(folder, tmp_path):
    for number in (2, 3): write(folder / f"{number}.mat")
    savemat(folder / "cvind.mat", {"cvind": np.array([[2.], [1.], [2.]])}) # the older format does for a row of numbers
    assert ts.open_data(folder, 32, cache=tmp_path / "a").table["split"].tolist() == ["fold1", "fold2", "fold2"]
    for bad in (np.array([[1.5, 1, 1]]), np.array([[1., 2.]]), np.array([[np.nan, 1, 1]])):
        with h5py.File(folder / "cvind.mat", "w") as file: file["cvind"] = bad
        assert "cvind.mat" in problems(folder, tmp_path)[0]
    (folder / "cvind.mat").write_text("no folds")
    assert len(problems(folder, tmp_path)) == 1


def test_the_archives_folders_and_a_number_twice(folder, tmp_path):
    for name in ("a", "b"): (tmp_path / "set" / name).mkdir(parents=True)
    for name in ("a/1.mat", "b/2.mat"): shutil.copy(folder / "1.mat", tmp_path / "set" / name)
    assert ts.open_data(tmp_path / "set", 32, cache=tmp_path / "a").table["name"].tolist() == ["a/1.mat", "b/2.mat"]
    (tmp_path / "set/b/2.mat").rename(tmp_path / "set/b/1.mat")
    assert "twice" in problems(tmp_path / "set", tmp_path)[0]


def test_masks_and_pictures(tmp_path):
    base = tmp_path / "pairs"
    for name in ("train/images", "train/masks", "test/images", "test/masks"): (base / name).mkdir(parents=True)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:30] = mask[20, 12] = 1
    def put(split="train", **masks):
        for name, mask in masks.items():
            Image.fromarray(np.full((40, 40), 90, np.uint8)).save(base / split / f"images/{name}.jpg")
            Image.fromarray(mask).save(base / split / f"masks/{name}.png")
    put(ones=mask, rgb=np.stack([mask * 255] * 3, 2), bits=mask.astype(bool))
    put("test", whole=mask * 0 + 1)
    slices = ts.open_data(base, 40, cache=tmp_path / "good")
    assert (slices.masks[:3] == mask).all() and slices.images.shape[1] == 1
    assert slices.table["split"].tolist() == ["train"] * 3 + ["test"]
    assert slices.table["label"].tolist() == ["contour"] * 3 + ["box"]
    put(classes=mask * (1 + np.arange(40, dtype=np.uint8) % 3), half=mask * 128, small=mask[:20], huge=mask,
        red=np.stack([mask * 255, mask, mask], 2))
    Image.new("1", (9_000, 9_000)).save(base / "train/masks/huge.png")
    (base / "test/masks/lonely.png").write_bytes((base / "train/masks/ones.png").read_bytes())
    told = "\n".join(problems(base, tmp_path))
    for words in ("classes.png: a mask with the values 0, 1, 2, 3", "half.png: a mask with the values 0, 128",
                  "red.png: a mask in colours", "small.png: is 40 x 20", "huge.png: 9000 x 9000",
                  "lonely.png: has no picture"):
        assert words in told
    assert told.count("\n") == 5


def test_two_layouts_and_none(folder, tmp_path):
    (folder / "train").mkdir()
    (folder / "train" / COCO_NAME).write_text("{}")
    [told] = problems(folder, tmp_path)
    assert "2 layouts" in told and "COCO" in told and "figshare" in told
    (tmp_path / "empty").mkdir()
    [told] = problems(tmp_path / "empty", tmp_path)
    for words in (COCO_NAME, "1.mat", "TCGA_", "masks/"): assert words in told
    assert "not a folder" in problems(tmp_path / "gone", tmp_path)[0]


def test_lgg_from_the_archive_is_read_once(tmp_path):
    for inner in ("kaggle_3m", "lgg-mri-segmentation/kaggle_3m"): # the archive holds everything twice
        patient = tmp_path / "lgg" / inner / "TCGA_AA_0001_19990101"
        patient.mkdir(parents=True)
        for number in (1, 2):
            Image.fromarray(np.full((20, 20, 3), (1, 90, 200), np.uint8)).save(patient / f"{patient.name}_{number}.tif")
            Image.fromarray(np.zeros((20, 20), np.uint8)).save(patient / f"{patient.name}_{number}_mask.tif")
    slices = ts.open_data(tmp_path / "lgg", 20, cache=tmp_path / "cache")
    assert slices.images[0, :, 5, 5].tolist() == [1, 90, 200] and slices.table["label"].tolist() == ["", ""]
