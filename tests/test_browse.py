"""The widgets as the notebook cannot show them: names of all controls, a failing disk, damaged predictions, memory."""
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch

import tumorseg as ts
from tumorseg.data.slices import load_slices, save_slices
from tumorseg.evaluation.predictions import Predictions, keep_maps, kept_maps
from tumorseg.model.checkpoint import save_model
from tumorseg.model.inference import ModelInfo, describe
from tumorseg.widgets.page import page
from tumorseg.widgets.tags import export_masks, read_tags, tag_slice


class BrightIsTumour(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.border = torch.nn.Parameter(torch.tensor(150.))

    def forward(self, x): return (x[:, :1] - self.border) / 8


def make_slices(count=6, size=32):
    rng = np.random.default_rng(0)
    masks = np.zeros((count, size, size), np.uint8)
    for number in range(count): masks[number, 8:12 + number % 12, 10:20] = 1
    images = (60 + 120 * masks + rng.integers(0, 40, masks.shape)).astype(np.uint8)[:, None]
    table = pd.DataFrame(dict(name=[f"test/{number}.png" for number in range(count)], split="test",
                              patient=[f"p{number // 4}" for number in range(count)],
                              category=[1 + number % 2 for number in range(count)], label="contour", height=size,
                              width=size))
    return ts.Slices(images, masks, table)


@pytest.fixture
def run(tmp_path):
    save_model(tmp_path / "run/model.safetensors", BrightIsTumour(), ModelInfo(32, (0.,), (1.,)))
    return tmp_path / "run"


@pytest.fixture
def predictions(run):
    return ts.predict_split(run, make_slices(), network=BrightIsTumour())


def controls(widget):
    for child in getattr(widget, "children", ()): yield from controls(child)
    shown = widgets.Box, widgets.HTML, widgets.Image
    if isinstance(widget, (widgets.ValueWidget, widgets.Button)) and not isinstance(widget, shown): yield widget


@pytest.mark.parametrize("kind, count", [
    ("browse", 15), ("browse two", 16), ("explore", 6), ("preview", 7), ("watch", 2), ("page", 2)])
def test_every_control_has_a_visible_name_of_its_own(predictions, run, kind, count):
    widget = {"browse": lambda: ts.browse(predictions), "browse two": lambda: ts.browse(predictions, predictions),
              "explore": lambda: ts.explore(make_slices()), "preview": lambda: ts.preview(make_slices()),
              "watch": lambda: ts.watch(make_slices(), run.parent / "none"), "page": lambda: page(run.parent)}[kind]()
    names = [control.description for control in controls(widget)]
    assert all(names) and len(set(names)) == len(names) == count, names


def test_a_full_disk_is_said_in_the_widget(predictions, monkeypatch):
    browser = ts.browse(predictions)

    def full(source, target): raise OSError(28, "No space left on device")
    monkeypatch.setattr("tumorseg.core.os.replace", full)
    for action in (lambda: setattr(browser.tag, "value", "wrong label"), browser.save.click):
        action()
        assert "No space left" in browser.message.value
    monkeypatch.undo()
    browser.correct.click()
    assert "tag a slice" in browser.message.value and not (predictions.folder / "corrected-1").exists()


def test_what_is_written_is_shown_as_text_not_as_html(run):
    slices = make_slices()
    slices.table["name"] = [f"test/<img src=x>{number}.png" for number in range(len(slices))]
    browser = ts.browse(ts.predict_split(run, slices, network=BrightIsTumour()))
    assert "<img" not in browser.caption.value and "&lt;img" in browser.caption.value


def test_two_open_widgets_keep_each_others_tags(predictions):
    first, second = ts.browse(predictions), ts.browse(predictions)
    first.tag.value = "wrong label"
    second.next.click()
    second.tag.value = "interesting"
    first.note.value = "late"
    assert len(read_tags(predictions.folder / "tags.csv")) == 2


def test_damaged_or_stopped_predictions_are_made_again(run, predictions):
    file = run / "predictions/test/percent.npy"
    whole = file.read_bytes()
    counts = file.parent / "counts.npy"
    for damage in (lambda: file.write_bytes(whole[:-1000]), lambda: counts.write_bytes(b"not an array"), file.unlink):
        damage()
        again = ts.predict_split(run, make_slices(), network=BrightIsTumour())
        assert file.read_bytes() == whole and (again.counts == predictions.counts).all()

    def stopped():
        yield np.zeros((2, 32, 32), np.float32)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): keep_maps(run / "predictions/valid", make_slices(), stopped())
    assert [path.name for path in (run / "predictions").iterdir()] == ["test"]


def with_value(array, place, value):
    array = array.copy()
    array[place] = value
    return array


DAMAGE = {"another kind": lambda percent, counts: (percent.astype(float), counts),
          "another shape": lambda percent, counts: (percent[:, :16], counts),
          "no percentage": lambda percent, counts: (with_value(percent, (1, 31, 31), 156), counts),
          "other pixels": lambda percent, counts: (with_value(percent, (2, slice(4, 9)), 100), counts),
          "counts of another kind": lambda percent, counts: (percent, counts.astype("U8")),
          "counts of another shape": lambda percent, counts: (percent, counts[:, :50]),
          "negative counts": lambda percent, counts: (percent, -counts)}


@pytest.mark.parametrize("damage", DAMAGE)
def test_predictions_of_another_kind_shape_or_range_are_made_again(run, predictions, damage):
    folder = run / "predictions/test"
    percent, counts = np.array(predictions.percent), np.array(predictions.counts)
    for name, array in zip(("percent", "counts"), DAMAGE[damage](percent, counts)):
        np.save(folder / f"{name}.npy", array)
    again = ts.predict_split(run, make_slices(), network=BrightIsTumour())
    assert (again.percent == percent).all() and (again.counts == counts).all() and again.percent.dtype == np.uint8


@pytest.mark.parametrize("header", [b"{'descr': '|u1', ", b"{'descr'\n  'x", b"(((", b"\xff\xfe"])
def test_a_damaged_header_is_no_end(run, predictions, header):
    for name in ("percent.npy", "counts.npy"):
        file = run / "predictions/test" / name
        file.write_bytes(file.read_bytes()[:10] + header + file.read_bytes()[10 + len(header):])
    assert (ts.predict_split(run, make_slices(), network=BrightIsTumour()).counts == predictions.counts).all()


def test_tags_with_a_name_twice_and_notes_of_no_alphabet_are_a_sentence(predictions):
    file = predictions.folder / "tags.csv"
    file.write_text("name,tag,note\na.png,interesting,\na.png,wrong label,\n")
    with pytest.raises(ts.InputError, match="a.png twice"): read_tags(file)
    assert "twice" in ts.browse(predictions).message.value
    file.unlink()
    with pytest.raises(ts.InputError, match="tags.csv"): tag_slice(file, "test/0.png", "interesting", "\ud800")
    assert not file.exists()


@pytest.mark.parametrize("name", ["../../../escaped.png", "/escaped.png", "test/../../escaped.png"])
def test_masks_are_never_exported_out_of_their_folder(predictions, tmp_path, name):
    predictions.slices.table.loc[0, "name"] = name
    with pytest.raises(ts.InputError, match="out of the folder"):
        export_masks(predictions, np.arange(2), .5, tmp_path / "deep/er/masks")
    assert not list(tmp_path.rglob("escaped.png")) and not list((tmp_path / "deep/er").iterdir())


def test_slices_on_disk_are_read_whole_only_where_their_files_have_changed(run, tmp_path, monkeypatch):
    slices = make_slices(40) # more than are looked at to know them again
    samples = list(zip(slices.images, slices.masks, slices.table.to_dict("records")))
    save_slices(tmp_path / "slices", iter(samples), 40, 1, 32)

    def opened(): return ts.predict_split(run, load_slices(tmp_path / "slices"), network=BrightIsTumour())
    before, written = opened(), (run / "predictions/test/percent.npy").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.delattr(ts.Slices, "fingerprint")
        assert (opened().percent == before.percent).all()
    (tmp_path / "slices/images.npy").touch() # the same content with another time
    opened()
    assert (run / "predictions/test/percent.npy").stat().st_mtime_ns == written
    masks = np.load(tmp_path / "slices/masks.npy")
    masks[5] = 0
    np.save(tmp_path / "slices/masks.npy", masks)
    assert (opened().pixels(.5)[5] != before.pixels(.5)[5]).any()


def test_another_model_in_the_same_folder_is_asked_anew(run, predictions):
    save_model(run / "model.safetensors", BrightIsTumour(), ModelInfo(32, (50.,), (1.,)))
    assert (ts.predict_split(run, make_slices(), network=BrightIsTumour()).percent != predictions.percent).any()


def test_dice_never_reads_the_maps(predictions):
    blind = Predictions(predictions.slices, None, predictions.counts, .5, "blind", predictions.folder, True)
    assert blind.dice(.3).shape == (6,) and blind.dice_of(2, .3) == blind.dice(.3)[2]


def test_a_missing_split_and_a_missing_model_are_input_errors(run, tmp_path):
    with pytest.raises(ts.InputError, match="valid"): ts.predict_split(run, make_slices(), "valid", BrightIsTumour())
    with pytest.raises(ts.InputError, match="none: not found"): ts.predict_split(tmp_path / "none", make_slices())


def test_models_of_two_sizes_can_be_compared(run, predictions, tmp_path):
    large = make_slices()
    large = ts.Slices(large.images.repeat(2, 2).repeat(2, 3), large.masks.repeat(2, 1).repeat(2, 2), large.table)
    save_model(tmp_path / "large/model.safetensors", BrightIsTumour(), ModelInfo(64, (0.,), (1.,)))
    widget = ts.browse(predictions, ts.predict_split(tmp_path / "large", large, network=BrightIsTumour()))
    assert bytes(widget.picture.value[:4]) == b"\x89PNG" and not widget.pixels.any() and not widget.message.value


def test_two_models_can_be_put_in_order_filtered_tagged_and_saved(predictions):
    widget = ts.browse(predictions, predictions)
    for order in widget.order.options:
        widget.order.value = order
        assert widget.row is not None and not widget.message.value
    widget.category.value = 2
    assert set(predictions.slices.table["category"][widget.rows]) == {2}
    widget.tag.value = "wrong label"
    assert len(read_tags(widget.tags_file)) == 1
    widget.save.click()
    assert len(list((predictions.folder / "exports").glob("*beside*.png"))) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process as Linux tells it")
def test_memory_stays_flat_while_browsing(tmp_path):
    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    slices = make_slices(400, 128)
    maps = (slices.masks[start:start + 50].astype(np.float32) for start in range(0, 400, 50))
    keep_maps(tmp_path / "maps", slices, maps)
    percent, counts = kept_maps(tmp_path / "maps", slices)
    assert isinstance(percent, np.memmap)
    browser = ts.browse(Predictions(slices, percent, counts, .5, "flat", tmp_path, True))
    for number in range(2, 60): browser.slice.value = number
    before = anonymous()
    for number in range(60, 401): browser.slice.value = number
    assert anonymous() - before < 4096, "kB more after 340 slices, whose pictures would be 270 MB"


def test_the_browser_says_what_is_unlike_the_training(tmp_path):
    slices = make_slices(40)
    slices.images[3] = np.random.default_rng(1).integers(0, 256, slices.images[3].shape, np.uint8)
    keep_maps(tmp_path / "maps", slices, iter([slices.masks.astype(np.float32)]))
    familiar = describe(make_slices(40).images).familiar
    predictions = Predictions(slices, *kept_maps(tmp_path / "maps", slices), .5, "noisy", tmp_path, True, familiar)
    assert "unlike" in predictions.unlike(3) and not predictions.unlike(5)
    browser = ts.browse(predictions)
    browser.order.value = "as in the data"
    browser.slice.value = 4
    assert "unlike" in browser.score.value
    browser.slice.value = 6
    assert "unlike" not in browser.score.value
