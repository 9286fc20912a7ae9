"""Every score equals what somebody else computes on random masks, empty ones among them."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from scipy.optimize import minimize
from scipy.spatial.distance import directed_hausdorff
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

import tumorseg as ts
from tumorseg.core import save_table
from tumorseg.data.images import from_square
from tumorseg.data.slices import FullMasks
from tumorseg.evaluation.evaluate import evaluate, read_scores, score_slices, scores_in_words, summarise
from tumorseg.metrics.calibration import calibration_error, fit_temperature, logit_counts
from tumorseg.metrics.intervals import bootstrap_interval, share_interval
from tumorseg.metrics.masks import count_masks, count_tumours, dice, iou, precision, recall, surface_scores
from tumorseg.model.checkpoint import save_model
from tumorseg.model.inference import ModelInfo
from tumorseg.training.run import start_run

RNG = np.random.default_rng(0)


def blobs(count, size, smooth, level):
    "Random masks: some large, some tiny, some cut by the frame, and a few that are empty or full."
    fields = ndimage.gaussian_filter(RNG.standard_normal((count, size, size)), (0, smooth, smooth))
    masks = fields / fields.std() > level
    masks[0], masks[1] = False, True
    return masks


TRUTH = np.concatenate([blobs(30, 37, 3, 1.2), blobs(30, 37, 1, 2.2), np.zeros((2, 37, 37), bool)])
NOTHING_AND_ALL = np.zeros((1, 37, 37), bool), np.ones((1, 37, 37), bool)
SAID = np.concatenate([blobs(30, 37, 3, 1.0), blobs(30, 37, 2, 1.5), *NOTHING_AND_ALL])
THEIRS = {dice: f1_score, iou: jaccard_score, precision: precision_score, recall: recall_score}


@pytest.mark.parametrize("ours", THEIRS)
def test_overlap_is_scikit_learns(ours):
    scores = ours(count_masks(SAID, TRUTH)).numpy()
    for score, said, truth in zip(scores, SAID, TRUTH):
        assert score == pytest.approx(THEIRS[ours](truth.ravel(), said.ravel(), zero_division=1), abs=1e-6)


def test_overlap_is_that_of_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch").metrics
    stats = smp.get_stats(*(torch.from_numpy(masks)[:, None].long() for masks in (SAID, TRUTH)), mode="binary")
    counts = count_masks(SAID, TRUTH)
    for ours, theirs in ((dice, smp.f1_score), (iou, smp.iou_score)):
        assert np.allclose(ours(counts), theirs(*stats, reduction="none", zero_division=1.0)[:, 0], atol=1e-6)
        assert ours(counts.sum(0)).item() == pytest.approx(theirs(*stats, reduction="micro").item(), abs=1e-6)


def test_outlines_are_measured_as_by_hand():
    hd95, nsd = surface_scores(SAID, TRUTH, tolerance=2)
    for said, truth, distance, share in zip(SAID, TRUTH, hd95, nsd):
        if said.any() and truth.any():
            # another way to the same: distance transforms over the full square, not trees of points in a cropped one
            edges = [mask & ~ndimage.binary_erosion(mask) for mask in (said, truth)]
            there, back = (ndimage.distance_transform_edt(~edges[1 - i])[edges[i]] for i in (0, 1))
            assert distance == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-3)
            assert share == pytest.approx((np.concatenate([there, back]) <= 2).mean(), abs=1e-6)
            hausdorff = [directed_hausdorff(*map(np.argwhere, order))[0] for order in (edges, edges[::-1])]
            assert distance <= max(hausdorff) + 1e-3
        elif said.any() or truth.any(): assert np.isnan(distance) and share == 0
        else: assert distance == 0 and share == 1


def islands(mask):
    "Connected parts, by walking from pixel to pixel over sides and corners."
    left = set(map(tuple, np.argwhere(mask)))
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            row, column = edge.pop()
            part.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge |= near
        yield part


def test_tumours_are_counted_as_by_walking():
    for said, truth, counts in zip(SAID, TRUTH, count_tumours(SAID, TRUTH)):
        said_pixels, true_pixels = (set(map(tuple, np.argwhere(mask))) for mask in (said, truth))
        hit = [bool(part & said_pixels) for part in islands(truth)]
        false = [not part & true_pixels for part in islands(said)]
        assert counts.tolist() == [len(hit), sum(hit), sum(false)]


def test_calibration_is_that_of_all_pixels_one_by_one():
    logits = RNG.normal(-2, 3, (20, 30, 30))
    truth, maps = RNG.random(logits.shape) < expit(logits / 2.5), expit(logits).astype(np.float32)
    counts = logit_counts(maps, truth)
    place = np.minimum((maps * 15).astype(int), 14)
    error = sum(abs(maps[place == i].mean() - truth[place == i].mean()) * (place == i).mean() for i in range(15))
    assert calibration_error(counts) == pytest.approx(error, abs=1e-3)
    loss = lambda log_t: np.logaddexp(0, np.where(truth, -logits, logits) / np.exp(log_t[0])).mean()
    assert fit_temperature(counts) == pytest.approx(np.exp(minimize(loss, [0.]).x[0]), rel=1e-3)
    assert calibration_error(counts, fit_temperature(counts)) < error / 2


def test_the_interval_is_as_wide_as_theory_says():
    "The mean of a large sample is normal: 1.96 standard errors either way, of patients' sums where these are drawn."
    patient = np.repeat(np.arange(400), 3)
    scores = np.repeat(RNG.normal(.7, .1, 400), 3) + RNG.normal(0, .05, 1200)
    low, high = bootstrap_interval(scores, patient, draws=5000)
    error = scores.reshape(400, 3).mean(1).std(ddof=1) / 20
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=.05)
    assert (high + low) / 2 == pytest.approx(scores.mean(), abs=error / 5)


def test_weights_give_the_interval_of_the_pooled_score():
    counts = count_masks(SAID, TRUTH).numpy()
    tp, fp, fn = counts.T
    low, high = bootstrap_interval(dice(torch.from_numpy(counts)), np.arange(len(counts)), 2 * tp + fp + fn)
    drawn = counts[np.random.default_rng(1).integers(0, len(counts), (4000, len(counts)))].sum(1)
    assert np.allclose([low, high], np.percentile(dice(torch.from_numpy(drawn)), (2.5, 97.5)), atol=.02)


def test_scores_do_not_depend_on_the_blocks_they_are_made_in():
    both = [np.tile(masks, (3, 1, 1)) for masks in (SAID, TRUTH)]
    assert torch.equal(count_masks(*both), count_masks(SAID, TRUTH).repeat(3, 1))


class BrightIsTumour(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.border = torch.nn.Parameter(torch.tensor(100.))

    def forward(self, x): return x[:, :1] - self.border


def slices_of(masks, said=None):
    "Slices whose images are bright where `BrightIsTumour` is to say tumour."
    table = pd.DataFrame(dict(name=[f"{i}.png" for i in range(len(masks))], split="test", patient="", category=1,
                              label="contour", height=37, width=37))
    return ts.Slices(np.uint8(masks if said is None else said)[:, None] * np.uint8(200), np.uint8(masks), table)


SMALLEST = {"nothing": (TRUTH[:1], SAID[:1]), "false alarm": (TRUTH[:1], ~SAID[:1]), "miss": (TRUTH[2:3], SAID[:1]),
            "no tumour at all": (TRUTH[:12] & False, SAID[:12] & False)}


@pytest.mark.parametrize("case", SMALLEST)
def test_the_smallest_sets_give_a_summary_that_json_can_hold(tmp_path, case):
    save_model(tmp_path / "model.safetensors", BrightIsTumour(), ModelInfo(37, (0.,), (1.,)))
    summary = ts.evaluate(tmp_path, slices_of(*SMALLEST[case]), network=BrightIsTumour())
    assert json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail) == summary
    assert summary["dice_ci_low"] <= summary["dice_mean"] <= summary["dice_ci_high"]
    assert summary["dice_mean"] == (0 if case in ("false alarm", "miss") else 1)
    assert len(list((tmp_path / "plots").glob("*.png"))) == 2


def test_names_and_patients_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    slices = slices_of(TRUTH[:3])
    slices.table["name"], slices.table["patient"] = ["007", "NA", "nan"], ["01", "1", "None"]
    save_table(tmp_path / "slices.csv", score_slices(SAID[:3].astype(np.float32), slices, .5))
    scores = ts.Run(tmp_path).scores
    assert scores["name"].tolist() == ["007", "NA", "nan"] and scores["patient"].tolist() == ["01", "1", "None"]
    assert summarise(scores)["n_patients"] == 3


SIZES = [(37, 37), (120, 90), (50, 200), (640, 512)]


def from_files(masks, said=None):
    "The same, from files of several sizes, with the ground truth at the size of each."
    slices = slices_of(masks, said)
    sides = [SIZES[row % len(SIZES)] for row in range(len(slices))]
    full = [from_square(np.float32(mask), *side) > .5 for mask, side in zip(masks, sides)]
    height, width = np.array(sides).T
    return replace(slices.assign(height=height, width=width), truth=FullMasks.of(full))


def test_slices_are_scored_at_the_size_of_their_files():
    maps = ndimage.gaussian_filter(np.float32(SAID), (0, 2, 2))
    slices = from_files(TRUTH)
    scores = score_slices(maps, slices, .3)
    for row in range(len(slices)):
        truth = slices.full_mask(row)
        said = from_square(maps[row], *truth.shape) > .3
        assert scores["pixels"][row] == truth.size == np.prod(SIZES[row % 4])
        expected = f1_score(truth.ravel(), said.ravel(), zero_division=1)
        assert scores["dice"][row] == pytest.approx(expected, abs=1e-6)
        hd95, nsd = surface_scores(said[None], truth[None], max(truth.shape) / 64)
        assert scores["nsd"][row] == nsd[0] and np.array_equal(scores["hd95"][row], hd95[0], equal_nan=True)
        counts = count_tumours(said[None], truth[None])[0]
        assert scores.loc[row, ["tumours", "tumours_hit", "false_tumours"]].tolist() == counts.tolist()


def test_slices_made_in_memory_are_scored_at_the_size_of_the_map():
    scores = score_slices(SAID.astype(np.float32), slices_of(TRUTH), .5)
    assert torch.equal(torch.tensor(scores[["tp", "fp", "fn"]].values), count_masks(SAID, TRUTH))
    assert scores["pixels"].eq(37 * 37).all()


def test_the_tolerance_of_outlines_means_the_same_at_every_size():
    two = np.zeros((2, 1, 64, 64), bool)
    two[0, 0, 10:40, 10:40] = two[1, 0, 10:40, 12:42] = True
    shares = [surface_scores(*two.repeat(times, 2).repeat(times, 3))[1][0] for times in (2, 4, 10)]
    assert max(shares) - min(shares) < .03 and .4 < shares[0] < .9


@pytest.mark.parametrize("count", [1, 5, 20])
def test_all_and_none_are_no_certainty(count):
    for hits in (0, count):
        exact = binomtest(hits, count).proportion_ci(method="exact")
        assert np.allclose(share_interval(np.full(count, hits > 0), np.arange(count)), exact)
    assert share_interval(np.ones(3 * count), np.repeat(np.arange(count), 3))[0] == .025 ** (1 / count)


APART = {"all": slice(None), "with tumour": slice(2, 40), "without": slice(-2, None)}


@pytest.mark.parametrize("kind", APART)
def test_slices_with_and_without_tumour_are_told_apart(kind):
    said, truth = SAID[APART[kind]], TRUTH[APART[kind]]
    has, hit, any_said = truth.any((1, 2)), (said & truth).any((1, 2)), said.any((1, 2))
    summary = summarise(score_slices(said.astype(np.float32), slices_of(truth), .5))
    assert (summary["n_with_tumour"], summary["n_found"]) == (has.sum(), hit.sum())
    assert (summary["n_without_tumour"], summary["n_kept_empty"]) == ((~has).sum(), (~has & ~any_said).sum())
    words = scores_in_words(summary | dict(split="test", size=37, scored_at="model", patients="separate", baselines=[]))
    for score, values, part in (("sensitivity", hit, has), ("specificity", ~any_said, ~has)):
        if part.any():
            assert summary[score] == pytest.approx(values[part].mean()) and f"{score} {summary[score]:.3f} (" in words
            assert summary[f"{score}_ci_low"] <= summary[score] <= summary[f"{score}_ci_high"]
        else: assert summary[score] is None and f"{score} unknown" in words
    if (~has).any(): assert summary["false_area"] == pytest.approx((said & ~truth).mean((1, 2))[~has].mean())


def test_a_network_that_finds_nothing_is_called_that_first():
    truth = np.concatenate([TRUTH[5:10], np.zeros((50, 37, 37), bool)])
    summary = summarise(score_slices(np.zeros(truth.shape, np.float32), slices_of(truth), .5))
    about = dict(split="test", size=37, scored_at="file", patients="separate", baselines=[])
    assert summary["dice_mean"] > .9
    assert scores_in_words(summary | about).startswith("It finds no tumour at all: 0 of ")


@pytest.fixture
def trained(tmp_path):
    "A run as a training leaves it, and its slices: six of six patients, in three splits."
    slices = slices_of(TRUTH[10:16]).assign(split=["train", "train", "valid", "test", "test", "test"],
                                            patient=[f"p{i}" for i in range(6)])
    network = BrightIsTumour()
    start_run(slices, tmp_path / "run", ts.Config(), network)
    save_model(tmp_path / "run/model.safetensors", network, ModelInfo(37, (0.,), (1.,)))
    return ts.Run(tmp_path / "run"), slices


def test_scores_of_other_data_never_stand_in_the_folder_of_a_run(trained, tmp_path):
    run, slices = trained
    own = evaluate(run, slices, network=BrightIsTumour())
    assert own["own_data"] is True and own["patients"] == "separate"
    kept = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    other = replace(slices, images=slices.images // 2)
    for data in (other, slices[3:], slices.assign(name="other" + slices.table["name"])):
        with pytest.raises(ts.InputError, match="--out"): evaluate(run, data, network=BrightIsTumour())
        said = evaluate(run, data, network=BrightIsTumour(), out=tmp_path / "elsewhere")
        assert said["own_data"] is False and (tmp_path / "elsewhere/slices.csv").exists()
    assert kept == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    shutil.copytree(run, tmp_path / "another run")
    with pytest.raises(ts.InputError, match="holds a training"):
        evaluate(run, other, network=BrightIsTumour(), out=tmp_path / "another run")


def test_patients_are_separate_only_where_the_table_of_the_run_proves_it(trained, tmp_path):
    run, slices = trained
    def state(data): return evaluate(run, data, network=BrightIsTumour(), out=tmp_path / "elsewhere")["patients"]
    only_test = slices[3:] # a folder with only test/
    assert state(only_test) == "separate" and state(only_test.assign(patient="")) == "unknown"
    assert state(only_test.assign(patient="p0")) == "leak" # one that it has learnt from
    (run / "table.csv").unlink()
    assert state(only_test) == "unknown"


def test_scores_are_known_by_their_content_and_never_by_dates(trained, tmp_path, monkeypatch):
    run, slices = trained
    monkeypatch.setattr(ts.Run, "segmenter", lambda run, network=None: ts.Segmenter(run, network or BrightIsTumour()))
    first = evaluate(run, slices, network=BrightIsTumour())["dice_mean"]
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copyfile)
    table, _ = ts.compare([run, tmp_path / "copy"], slices)
    assert table["dice"].tolist() == pytest.approx([first, first])
    dark = BrightIsTumour() # a resumed training, whose scores are older but look newer
    dark.border.data += 300
    save_model(tmp_path / "copy/model.safetensors", dark, ModelInfo(37, (0.,), (1.,)))
    (tmp_path / "copy/slices.csv").touch()
    assert ts.compare([run, tmp_path / "copy"], slices)[0]["dice"][1] == 0
    with pytest.raises(ts.InputError, match="another model"): read_scores(tmp_path / "copy")
    save_table(run / "slices.csv", run.scores.assign(dice=-1.))
    assert ts.compare([run, tmp_path / "copy"], slices)[0]["dice"][0] == pytest.approx(first)


@pytest.mark.parametrize("damage", [dict(dice=-1.), dict(iou=2.), dict(tp="many"), dict(nsd=np.nan), dict(fp=1e30)])
def test_scores_that_are_none_are_a_sentence(trained, damage):
    run, slices = trained
    evaluate(run, slices, network=BrightIsTumour())
    scores = run.scores
    save_table(run / "slices.csv", scores.assign(**damage))
    with pytest.raises(ts.InputError, match="slices.csv.*Evaluate"): read_scores(run)
    save_table(run / "slices.csv", scores.drop(columns=[*damage]))
    with pytest.raises(ts.InputError, match="slices.csv.*Evaluate"): read_scores(run)


def test_a_dollar_in_a_name_is_no_formula(trained):
    run, slices = trained
    run.path.joinpath("config.json").unlink() # a model alone takes any slices
    bad = slices.assign(name=[f"$\\frac{row}$.jpg" for row in range(6)], split="test$\\x$")
    assert evaluate(run, bad, "test$\\x$", BrightIsTumour())["n_slices"] == 6
    assert (run / "overlays/worst.png").exists()
