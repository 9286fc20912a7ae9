"""The model file and its use: what is refused, what is never overwritten, what a picture may be."""
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import tumorseg as ts
from tumorseg.model import checkpoint
from tumorseg.model.checkpoint import load_model, load_training, model_key, save_model, save_training, set_threshold
from tumorseg.model.familiar import LOOKS, learn_look, unlike_in_words
from tumorseg.model.inference import ModelInfo, describe
from tumorseg.widgets.page import read_upload, segment_upload

NAN, INFINITE = float("nan"), float("inf")
INFO = ModelInfo(32, (60.,), (40.,))


def small(channels=1):
    torch.manual_seed(0)
    return ts.UNet(channels, width=2, depth=1)


def slice_like(seed=0, size=40, channels=1):
    "A head on black with a bright spot, somewhere."
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    head = (rows / rng.uniform(.75, .9)) ** 2 + (columns / rng.uniform(.65, .8)) ** 2 < 1
    spot = np.hypot(rows - rng.uniform(-.4, .4), columns - rng.uniform(-.4, .4)) < .2
    grey = (rng.uniform(60, 90) + 90 * spot + rng.normal(0, 6, head.shape)) * head
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[None], channels, 0)


def write_picture(path, seed=0, **shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(slice_like(seed, **shape)[0]).save(path)
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    run = tmp_path_factory.mktemp("model")
    save_model(run / "model.safetensors", small(), describe(np.array([slice_like(seed, 32) for seed in range(60)])))
    return ts.Segmenter(run)


def rewrite(path, **changes):
    "The facts in a model file changed as an attacker would: its header is JSON, its tensors stay."
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + length])
    facts = json.loads(header["__metadata__"]["tumorseg"])
    for key, value in changes.items(): facts[key] = value if not isinstance(value, dict) else {**facts[key], **value}
    header["__metadata__"]["tumorseg"] = json.dumps(facts)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length:])


# --- the model file


@pytest.mark.parametrize("wrong", [{"threshold": value} for value in (NAN, INFINITE, 1, 0, -1, "x", None, 10 ** 400)]
                         + [{"std": value} for value in ([0], [-1], [INFINITE], [NAN], [], [40, 40], 5)]
                         + [{"mean": value} for value in ([NAN], [1e9], [60, 60, 60], "x")]
                         + [{"size": value} for value in (INFINITE, -1, 0, 10 ** 18, "x", None)]
                         + [{"familiar": value} for value in ({}, {"examples": [], "scale": [], "limit": 1}, [1],
                                                              {"examples": [[1]], "scale": [1], "limit": 1})])
def test_nonsense_in_a_model_file_is_refused(tmp_path, wrong):
    path = tmp_path / "model.safetensors"
    save_model(path, small(), INFO)
    rewrite(path, info=wrong)
    with pytest.raises(ts.InputError, match="model.safetensors: ") as error: load_model(path)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("info", [replace(INFO, **{name: value}) for name, value in
                                  (("threshold", NAN), ("threshold", 1.), ("std", (0.,)), ("mean", (INFINITE,)),
                                   ("size", 0), ("std", (1., 1.)))])
def test_nonsense_is_not_saved(tmp_path, info):
    with pytest.raises(ts.InputError, match="not written"): save_model(tmp_path / "model.safetensors", small(), info)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite(tmp_path, monkeypatch):
    network, path = small(), tmp_path / "model.safetensors"
    network.out.bias.data.fill_(NAN)
    with pytest.raises(ts.InputError, match="out.bias"): save_model(path, network, INFO)
    monkeypatch.setattr(checkpoint, "_not_finite", lambda _: "")
    save_model(path, network, INFO)
    monkeypatch.undo()
    with pytest.raises(ts.InputError, match="model.safetensors: cannot be used .*out.bias"): ts.Segmenter(path)


def test_a_deeply_nested_header(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, small(), INFO)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + length])
    header["__metadata__"]["tumorseg"] = "[" * 200_000 + "]" * 200_000
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length:])
    with pytest.raises(ts.InputError, match="model.safetensors"): load_model(path)


CHILD = """
import resource, sys
import tumorseg as ts
from tumorseg.model.checkpoint import load_model
try: load_model({path!r}.replace("WARM", "good"))
except ts.InputError as error: sys.exit(f"good: {{error}}")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: load_model({path!r}.replace("WARM", "bad"))
except ts.InputError as error: print(error)
else: sys.exit("loaded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in kB on Linux")
@pytest.mark.parametrize("architecture", [{"width": 1000, "depth": 4}, {"width": 512, "depth": 4}, {"width": 256},
                                          {"channels": 10 ** 9}, {"depth": 10 ** 9}])
def test_a_small_file_never_asks_for_much_memory(tmp_path, architecture):
    for name in ("good", "bad"): save_model(tmp_path / f"{name}.safetensors", small(), INFO)
    rewrite(tmp_path / "bad.safetensors", architecture=architecture)
    child = CHILD.format(path=str(tmp_path / "WARM.safetensors"))
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sentence, more = done.stdout.splitlines()
    assert "bad.safetensors" in sentence and int(more) < 50_000, done.stdout


def test_a_network_too_large_for_any_memory():
    with pytest.raises(ts.InputError, match="1,985 million weights"): ts.UNet(width=512, depth=4)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in ts.UNet(3, width=20, depth=3).parameters() if weight.ndim == 4)
    assert abs(count - 20 - (9 * 20 * 23 + 89 * 400 * 21)) == 0


def test_the_type_of_the_weights_is_looked_at(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, small().half(), INFO)
    with pytest.raises(ts.InputError, match="fit"): load_model(path)


def test_a_model_of_an_earlier_version(tmp_path):
    path, picture = tmp_path / "model.safetensors", slice_like()
    save_model(path, small(), INFO)
    rewrite(path, info={"familiar": None})
    facts, _ = checkpoint._header(path)
    del facts["info"]["familiar"]
    path.write_bytes(checkpoint._pack(small().state_dict(), facts))
    old = ts.Segmenter(path)
    assert old.info == INFO and old.unlike(255 - picture) == ""
    save_model(tmp_path / "new.safetensors", small(), INFO)
    assert (old(picture) == ts.Segmenter(tmp_path / "new.safetensors")(picture)).all()


def test_threshold_and_key(tmp_path, segmenter):
    path = tmp_path / "model.safetensors"
    save_model(path, small(), segmenter.info)
    first = model_key(path)
    assert len(first) == 16 and model_key(tmp_path) == first
    set_threshold(path, .25)
    assert load_model(path)[1] == replace(segmenter.info, threshold=.25) and model_key(path) != first
    for wrong in (0, 1, -1, NAN, INFINITE):
        with pytest.raises(ts.UsageError): set_threshold(path, wrong)
    set_threshold(tmp_path, .5)
    assert model_key(path) == first
    save_model(path, small(), replace(segmenter.info, familiar=None))
    assert model_key(path) != first
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:500])
    for name in ("cut.safetensors", "gone.safetensors"):
        for call in (model_key, lambda path: set_threshold(path, .3)):
            with pytest.raises(ts.InputError, match=name): call(tmp_path / name)


def test_pipes_and_folders_are_no_models(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for name in ("pipe", "empty", "n" * 300):
        with pytest.raises(ts.InputError, match="not found"): ts.Segmenter(tmp_path / name)


@pytest.mark.parametrize("facts", [[], "text", 5, None])
def test_a_training_whose_facts_have_no_names(tmp_path, facts):
    network = small()
    optimizer, path = torch.optim.AdamW(network.parameters()), tmp_path / "training.safetensors"
    save_training(path, network, small(), optimizer, facts)
    with pytest.raises(ts.InputError, match="training.safetensors"): load_training(path, network, small(), optimizer)


@pytest.mark.parametrize("name", ["optimizer.0", "optimizer.x.step", "optimizer.999.step", "optimizer.0.exp_avg"])
def test_a_training_with_an_odd_optimiser(tmp_path, name):
    network = small()
    optimizer, path = torch.optim.AdamW(network.parameters()), tmp_path / "training.safetensors"
    network(torch.zeros(1, 1, 8, 8)).sum().backward()
    optimizer.step()
    save_training(path, network, small(), optimizer, {"step": 1})
    tensors = {**checkpoint._tensors(path), name: torch.zeros(3, 3)}
    path.write_bytes(checkpoint._pack(tensors, {"step": 1}))
    with pytest.raises(ts.InputError, match="training.safetensors"): load_training(path, network, small(), optimizer)


# --- what a picture may be


def test_pictures_of_all_kinds(segmenter):
    picture = slice_like()
    wanted = segmenter(picture)
    full = picture.copy()
    full[0, 0, :2] = 0, 255 # so that scaling changes nothing
    scaled = segmenter(full)
    same = [Image.fromarray(full[0]), torch.from_numpy(full), torch.from_numpy(full[0] / 255.), full[0] / 255.,
            full.astype(np.float16), full.astype(np.uint16) * 257, full.astype(np.int16) * 16 - 1000,
            full[0][..., None], full[0][..., None].repeat(3, -1), full.repeat(3, 0),
            torch.from_numpy(full).to(torch.bfloat16)]
    for given in same: assert np.allclose(segmenter(given), scaled, atol=1e-3), given
    assert (segmenter(picture[0]) == wanted).all() # uint8 is taken as it is
    assert not (wanted == scaled).all()


@pytest.mark.parametrize("wrong", [*[np.zeros(shape, np.uint8) for shape in ((5, 9, 9), (2, 1, 9, 9), (9,), (0, 9))],
                                   np.full((9, 9), NAN), np.ones((9, 9), bool), np.eye(9), "nowhere.png", [[1]], None])
def test_what_is_no_picture(segmenter, wrong):
    for call in (segmenter, segmenter.mask, segmenter.unlike):
        with pytest.raises(ts.InputError): call(wrong)


# --- unlike the training slices


def test_unlike_is_said_in_words(segmenter, tmp_path):
    picture = slice_like(100)
    assert segmenter.unlike(picture) == segmenter.unlike(Image.fromarray(picture[0])) == ""
    inverted = segmenter.unlike(255 - picture)
    assert "brighter" in inverted and inverted.endswith("do not rely on its mask.") and inverted.count(".") == 1
    write_picture(tmp_path / "like.png", 100)
    Image.fromarray(255 - picture[0]).save(tmp_path / "unlike.png")
    done, _ = ts.predict_files(segmenter, [tmp_path / "like.png", tmp_path / "unlike.png"], tmp_path / "out")
    assert [row["unlike"] for row in done] == ["", inverted]
    *_, sentence = segment_upload(segmenter, "unlike.png", (tmp_path / "unlike.png").read_bytes())
    assert sentence.splitlines()[0] == inverted and sentence.splitlines()[1].startswith("unlike.png, 40 x 40 pixels")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [16, 40, 300])
def test_few_new_slices_of_the_same_kind_are_unlike(count, channels):
    familiar = learn_look(np.array([slice_like(seed, 32, channels) for seed in range(count)]))
    assert len(familiar.scale) == channels * len(LOOKS) and len(familiar.examples) < max(9, count / 7)
    new = [slice_like(1000 + seed, 32, channels) for seed in range(40)]
    assert sum(bool(unlike_in_words(familiar, image)) for image in new) <= 8
    assert all(unlike_in_words(familiar, 255 - image) for image in new)


def test_two_kinds_of_training_slices():
    "Between a tumour set and a dark healthy set there is nothing that belongs to either."
    one = np.array([slice_like(seed, 32) for seed in range(100)])
    both = np.concatenate([one, one[:50] // 4])
    familiar = learn_look(both)
    new = [slice_like(1000 + seed, 32) for seed in range(20)]
    assert sum(bool(unlike_in_words(familiar, image)) for image in [*new, *(image // 4 for image in new)]) <= 4
    assert all(unlike_in_words(familiar, 255 - image) for image in new)


@pytest.mark.parametrize("grey", [0, 90, 255])
def test_slices_without_any_structure(grey, segmenter):
    flat = np.full((1, 32, 32), grey, np.uint8)
    assert unlike_in_words(learn_look(np.repeat(flat[None], 20, 0)), flat) == ""
    assert segmenter.unlike(flat)


def test_a_description_needs_sixteen_slices():
    assert describe(np.array([slice_like(seed, 32) for seed in range(15)])).familiar is None


# --- many files


def names(folder): return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_no_file_is_wrong_use(segmenter, tmp_path):
    with pytest.raises(ts.UsageError, match="no file"): ts.predict_files(segmenter, [], tmp_path / "out")
    for threshold in (0, 1, NAN, -1):
        with pytest.raises(ts.UsageError, match="threshold"):
            ts.predict_files(segmenter, [tmp_path / "x.png"], tmp_path / "out", threshold)
    (tmp_path / "empty").mkdir()
    done, problems = ts.predict_files(segmenter, [tmp_path / "empty"], tmp_path / "out")
    assert not done and "holds no picture" in problems[0] and not (tmp_path / "out").exists()


def test_a_folder_with_sub_folders(segmenter, tmp_path, capsys):
    data = tmp_path / "data"
    for number, name in enumerate(("1.png", "a/1.png", "a/b/2.JPG", "a/1_mask.png", ".hidden/3.png", ".4.png")):
        write_picture(data / name, number)
    (data / "notes.txt").write_text("no picture")
    done, problems = ts.predict_files(segmenter, [data], tmp_path / "out")
    assert not problems and "NAME_mask are left out (1)" in capsys.readouterr().err
    assert [Path(row["file"]).relative_to(data).as_posix() for row in done] == ["1.png", "a/1.png", "a/b/2.JPG"]
    kinds = [f"{name}_{kind}.png" for name in ("1", "a/1", "a/b/2") for kind in ("mask", "overlay")]
    assert names(tmp_path / "out") == sorted([*kinds, "predictions.csv"])
    again, problems = ts.predict_files(segmenter, [data, data / "1.png"], tmp_path / "out", threshold=.01)
    assert not problems and len(again) == 3 and {row["threshold"] for row in again} == {.01} # its own file is replaced
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    assert list(table) == list(again[0]) and (table["threshold"] == .01).all() and len(table) == 3
    ts.predict_files(segmenter, [write_picture(tmp_path / "other.png")], tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out/predictions.csv")) == 4


def test_results_beside_or_below_the_pictures_are_no_pictures(segmenter, tmp_path):
    for number in range(2): write_picture(tmp_path / f"data/{number}.png", number)
    for out in (tmp_path / "data", tmp_path / "data/predictions"):
        for _ in range(2):
            done, problems = ts.predict_files(segmenter, [tmp_path / "data"], out)
            assert len(done) == 2 and not problems
    write_picture(tmp_path / "data/my_overlay.png") # of somebody else: a picture like any other
    done, _ = ts.predict_files(segmenter, [tmp_path / "data"], tmp_path / "out")
    assert [Path(row["file"]).name for row in done] == ["0.png", "1.png", "my_overlay.png"]


def test_the_same_name_in_two_folders(segmenter, tmp_path):
    files = [write_picture(tmp_path / f"{folder}/1.png", number) for number, folder in enumerate("ab")]
    ts.predict_files(segmenter, files, tmp_path / "files")
    ts.predict_files(segmenter, [file.parent for file in files], tmp_path / "folders")
    wanted = [f"{folder}/1_{kind}.png" for folder in "ab" for kind in ("mask", "overlay")] + ["predictions.csv"]
    assert names(tmp_path / "files") == names(tmp_path / "folders") == wanted
    write_picture(tmp_path / "a/1.jpg")
    with pytest.raises(ts.UsageError, match="called 1"): ts.predict_files(segmenter, [tmp_path / "a"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_ground_truth_is_never_overwritten(segmenter, tmp_path):
    picture, truth = write_picture(tmp_path / "a.png"), write_picture(tmp_path / "a_mask.png", 1)
    before = truth.read_bytes()
    done, problems = ts.predict_files(segmenter, [picture, write_picture(tmp_path / "b.png", 2)], tmp_path)
    assert truth.read_bytes() == before and not (tmp_path / "a_overlay.png").exists()
    assert len(problems) == 1 and "a_mask.png: is there already" in problems[0] and len(done) == 1
    # nor what somebody has corrected, or a table of his own, or a link
    corrected = np.asarray(Image.open(tmp_path / "b_mask.png")).copy()
    corrected[0] = 255 - corrected[0]
    text = Image.open(tmp_path / "b_mask.png").info["Software"]
    kept = PngInfo()
    kept.add_text("Software", text) # an editor may keep the text
    Image.fromarray(corrected).save(tmp_path / "b_mask.png", pnginfo=kept)
    os.symlink(truth, tmp_path / "c_mask.png")
    (tmp_path / "predictions.csv").write_text("my,own\n1,2\n")
    write_picture(tmp_path / "d.png")
    files = [tmp_path / "b.png", write_picture(tmp_path / "c.png"), tmp_path / "d.png"]
    done, problems = ts.predict_files(segmenter, files, tmp_path)
    assert len(done) == 1 and [word in problem for word, problem in
                               zip(("b_mask", "c_mask", "predictions.csv"), problems)] == [True] * 3
    assert (np.asarray(Image.open(tmp_path / "b_mask.png")) == corrected).all() and truth.read_bytes() == before
    assert (tmp_path / "predictions.csv").read_text() == "my,own\n1,2\n"


def test_long_and_odd_names(segmenter, tmp_path):
    long, last = write_picture(tmp_path / f"{'n' * 246}.png"), write_picture(tmp_path / "z.png")
    latin = Path(os.fsdecode(bytes(tmp_path) + b"/t\xfcmor.png"))
    latin.write_bytes(last.read_bytes())
    given = [long, latin, tmp_path / ("m" * 300), tmp_path / "a\0b.png", last]
    done, problems = ts.predict_files(segmenter, given, tmp_path / "out")
    assert [row["file"] for row in done] == [str(last)] and len(problems) == 4
    for problem in problems: problem.encode()
    assert "Choose a shorter name" in problems[0] and "UTF-8" in problems[1]
    assert names(tmp_path / "out") == ["predictions.csv", "z_mask.png", "z_overlay.png"]


def test_links_out_of_the_folder_are_not_followed(segmenter, tmp_path):
    write_picture(tmp_path / "outside/secret.png")
    write_picture(tmp_path / "data/1.png")
    os.symlink(tmp_path / "outside/secret.png", tmp_path / "data/2.png")
    os.symlink(tmp_path / "outside", tmp_path / "data/sub")
    done, problems = ts.predict_files(segmenter, [tmp_path / "data"], tmp_path / "out")
    assert [Path(row["file"]).name for row in done] == ["1.png"] and len(problems) == 1 and "2.png" in problems[0]


def test_leftovers_of_a_killed_call(segmenter, tmp_path):
    write_picture(tmp_path / "data/a/1.png")
    for folder in (tmp_path / "out", tmp_path / "out/a"):
        folder.mkdir(exist_ok=True)
        (folder / ".tumorseg-0123abcd.tmp").write_bytes(b"half")
        (folder / ".notes.2024").write_text("mine")
    ts.predict_files(segmenter, [tmp_path / "data"], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp")) and len(list((tmp_path / "out").rglob(".notes.2024"))) == 2


def test_a_formula_for_a_name(segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_picture(Path("=cmd|' /C calc'!A0.png").absolute())
    ts.predict_files(segmenter, ["=cmd|' /C calc'!A0.png"], "out")
    assert "\n'=cmd" in Path("out/predictions.csv").read_text()


# --- the page


@pytest.mark.parametrize("name", ["脳" * 100 + ".jpg", "..", "../..", "a\0b.png", "", ".", "/", "x" * 5000,
                                  "\ud800.png", "..\\..\\b.png", "a\nb.png"])
def test_names_of_uploads(segmenter, tmp_path, name):
    content = write_picture(tmp_path / "scan.png").read_bytes()
    assert read_upload(name, content).shape == (1, 40, 40)
    *_, sentence = segment_upload(segmenter, name, content)
    assert "40 x 40 pixels" in sentence and "\0" not in sentence and sentence.encode()
    with pytest.raises(ts.InputError, match="not an image") as error: read_upload(name, b"letter")
    assert "/tmp" not in str(error.value) and len(str(error.value)) < 250
