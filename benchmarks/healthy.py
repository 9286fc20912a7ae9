"""Do healthy slices teach health, or only another scanner? Networks of one budget: trained on slices with a tumour
only, with healthy slices of another source added, and with measures against the shortcut; each scored on unseen
patients, on unseen healthy slices of the source that was added, and on slices of a source that none of them has seen.

    python benchmarks/healthy.py figshare HEALTHY LGG --out runs/healthy --csv results/healthy.csv

HEALTHY is a folder of pictures without tumour, LGG the LGG set (its slices after contrast are of the kind of
figshare's, its FLAIR slices are not). The same command continues where it was stopped; `--only NAME` runs one network.
"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from machine import machine
from scipy import ndimage
from tyro.conf import Positional

import tumorseg as ts
from tumorseg.core import save_table
from tumorseg.data.healthy import healthy_entries, healthy_sample
from tumorseg.data.patients import copy_groups
from tumorseg.metrics.intervals import bootstrap_interval
from tumorseg.metrics.masks import count_tumours


def stacked(*parts: ts.Slices) -> ts.Slices:
    "Slices of several sources as one set."
    return ts.Slices(np.concatenate([part.images for part in parts]), np.concatenate([part.masks for part in parts]),
                     pd.concat([part.table for part in parts], ignore_index=True))


def variants(slices: ts.Slices, seed: int) -> ts.Slices:
    "The same slices with another contrast and sharpness each: gamma, window, noise, blurred or sharpened."
    rng, images = np.random.default_rng(seed), np.array(slices.images)
    for image in images:
        plane = image[0] / 255
        plane = plane ** np.exp(rng.uniform(-.4, .4))
        low, high = rng.uniform(0, .04), rng.uniform(.75, 1.1)
        plane = np.clip((plane - low) / (high - low), 0, 1)
        sigma = rng.uniform(.3, 1.1)
        blurred = ndimage.gaussian_filter(plane, sigma)
        plane = blurred if rng.random() < .5 else plane + rng.uniform(0, 1) * (plane - blurred)
        plane = plane + rng.normal(0, rng.uniform(0, .02), plane.shape) * (plane > .03)
        image[0] = np.clip(plane * 255, 0, 255).round()
    return replace(slices, images=images)


def soft(mask: np.ndarray, grow: int = 2) -> np.ndarray:
    "A mask made larger, with soft edges, 0..1."
    return ndimage.gaussian_filter(ndimage.binary_dilation(mask, iterations=grow).astype(np.float32), 1.2)


def head_of(plane: np.ndarray) -> np.ndarray: # bool (H, W)
    "The pixels of the head."
    return ndimage.binary_fill_holes(ndimage.binary_opening(plane > 20, iterations=1))


def without_tumour(slices: ts.Slices) -> ts.Slices:
    """Slices whose tumour is covered by the mirrored other side of the head, where the two sides are alike and the
    tumour is on one of them: the same scanner without a tumour."""
    kept, images = [], []
    for row, (image, mask) in enumerate(zip(slices.images, slices.masks)):
        plane = image[0].astype(np.float32)
        head = head_of(plane)
        if not mask.any() or not head.any(): continue
        columns = np.flatnonzero(head.any(0))
        shift = columns[0] + columns[-1] - (plane.shape[1] - 1)
        mirrored = ndimage.shift(plane[:, ::-1], (0, shift), order=1)
        cover = soft(mask, 3)
        other = ndimage.shift(cover[:, ::-1], (0, shift), order=1)
        outside = (cover < .05) & (other < .05) & (head | (mirrored > 20))
        alike = np.corrcoef(plane[outside], mirrored[outside])[0, 1] if outside.sum() > 50 else 0
        if alike < .45 or (cover * other).sum() > .1 * cover.sum(): continue
        ring = (soft(mask, 5) > .1) & (cover < .1)
        mirrored += np.clip(plane[ring].mean() - mirrored[ring].mean(), -40, 40)
        images.append((plane * (1 - cover) + mirrored * cover).clip(0, 255).round().astype(np.uint8)[None])
        kept.append(row)
    table = slices.table.iloc[kept].reset_index(drop=True).assign(category=0, label="")
    table["name"] = "covered/" + table["name"]
    return ts.Slices(np.array(images), np.zeros((len(kept), *slices.masks.shape[1:]), np.uint8), table)


def with_tumour(healthy: ts.Slices, tumours: ts.Slices, seed: int) -> ts.Slices:
    "Healthy slices with a tumour of another slice set into them, its contrast to the tissue around it kept."
    rng, images, masks = np.random.default_rng(seed), np.array(healthy.images), np.zeros_like(healthy.masks)
    for row, image in enumerate(images):
        plane, donor = image[0].astype(np.float32), rng.integers(len(tumours))
        source, mask = tumours.images[donor, 0].astype(np.float32), tumours.masks[donor]
        turns, flip = rng.integers(4), rng.random() < .5
        source, mask = (np.rot90(one[:, ::-1] if flip else one, turns) for one in (source, mask))
        inside = ndimage.binary_erosion(head_of(plane), iterations=plane.shape[0] // 12)
        places = np.argwhere(inside)
        if not len(places) or not mask.any(): continue
        offset = places[rng.integers(len(places))] - np.array(ndimage.center_of_mass(mask))
        shift = np.round(offset).astype(int)
        source, mask = (ndimage.shift(one, shift, order=0) for one in (source, mask))
        cover = soft(mask, 1)
        around = (soft(mask, 5) > .1) & (cover < .1)
        if mask.sum() < 4 or not (around & inside).any(): continue
        ratio = np.clip(np.median(plane[around & inside]) / max(np.median(source[around]), 5), .4, 2.5)
        image[0] = (plane * (1 - cover) + source * ratio * cover).clip(0, 255).round()
        masks[row] = mask
    table = healthy.table.assign(name="set in/" + healthy.table["name"], category=1, label="contour")
    made = ts.Slices(images, masks, table)
    return made[made.areas > 0]


def training_sets(tumour: ts.Slices, healthy: ts.Slices) -> dict[str, ts.Slices]:
    "What each network is trained on; its validation slices are healthy too where it has learnt from healthy ones."
    train, alone = tumour.in_split("train"), healthy.in_split("train")
    covered, set_in = without_tumour(train), with_tumour(alone, train, seed=1)
    both = stacked(train, alone)
    measures = stacked(both, covered, set_in)
    altered = variants(measures, seed=2)
    altered = altered.assign(name="altered/" + altered.table["name"])
    valid = stacked(tumour.in_split("valid"), healthy.in_split("valid"))
    print({"train": len(train), "healthy": len(alone), "covered": len(covered), "set in": len(set_in)}, flush=True)
    return {"tumour only": stacked(train, tumour.in_split("valid")), "healthy added": stacked(both, valid),
            "against the shortcut": stacked(measures, altered, valid)}


def score(segmenter: ts.Segmenter, slices: ts.Slices) -> pd.DataFrame:
    "One row per slice: name, patient, has it a tumour, is that hit, is anything marked, and how much of the picture."
    predicted = segmenter.slices(slices.images) > segmenter.info.threshold
    counts = count_tumours(predicted, slices.masks)
    area = predicted.reshape(len(slices), -1).mean(1)
    return slices.table[["name", "patient"]].assign(tumour=slices.areas > 0, hit=counts[:, 1] > 0,
                                                    marked=predicted.any((1, 2)), area=area)


def rows_of(name: str, source: str, scores: pd.DataFrame) -> list[dict]:
    "Sensitivity and specificity of a network on a source, with intervals over patients or groups of near copies."
    rows = []
    for kind, part, value in (("sensitivity", scores[scores["tumour"]], lambda part: part["hit"]),
                              ("specificity", scores[~scores["tumour"]], lambda part: ~part["marked"])):
        if not len(part): continue
        share = value(part).to_numpy(float)
        low, high = bootstrap_interval(share, part["patient"].to_numpy())
        rows.append(dict(network=name, source=source, score=kind, value=share.mean(), low=low, high=high,
                         slices=len(part), groups=part["patient"].nunique(), marked_area=part["area"].mean()))
    return rows


def main(data: Positional[str], healthy: Positional[Path], lgg: Positional[Path], out: Path, size: int = 96,
         budget: int = 22_000, csv: Path | None = None, only: str = "") -> None:
    "Train, each network on `budget` slices in all, score, print the table."
    print(machine(), flush=True)
    tumour = ts.open_data(data, size, split="patients")
    negatives = open_healthy(healthy, size)
    outside = ts.open_data(lgg, size)
    heads = outside[np.array([head_of(image[2]).mean() > .08 for image in outside.images])] # no slices above the head
    sources = {"figshare, unseen patients": tumour.in_split("test"),
               "healthy, unseen groups": negatives.in_split("test"),
               "LGG after contrast": replace(heads, images=heads.images[:, 2:]),
               "LGG FLAIR": replace(heads, images=np.array(heads.images[:, 1:2]))}
    rows = []
    for name, slices in training_sets(tumour, negatives).items():
        if only and name != only: continue
        epochs = max(1, round(budget / len(slices.rows_of("train"))))
        run = ts.train(slices, out / name.replace(",", "").replace(" ", "-"), ts.Config(epochs=epochs),
                       on_epoch=lambda history, *_: print(history[-1], flush=True))
        segmenter = run.segmenter()
        for source, part in sources.items(): rows += rows_of(name, source, score(segmenter, part))
        print(pd.DataFrame(rows).to_string(), flush=True)
    if csv: save_table(csv, pd.DataFrame(rows))


def open_healthy(folder: Path, size: int) -> ts.Slices:
    "Pictures without tumour, in groups of near copies, three of five groups to train on."
    entries, _ = healthy_entries(folder)
    images, _, rows = zip(*(healthy_sample(entry, size) for entry in entries))
    table = pd.DataFrame(rows).assign(height=size, width=size)
    table["name"] = "healthy/" + table["name"]
    slices = ts.Slices(np.array(images), np.zeros((len(rows), size, size), np.uint8), table)
    group = copy_groups(slices)
    count = group.max() + 1
    part = np.random.default_rng(0).permutation(count) % 5
    split = np.select([part[group] == 0, part[group] == 1], ["test", "valid"], "train").astype(object)
    patient = np.array([f"healthy-{number:04}" for number in group], object)
    return slices.assign(split=split, patient=patient)


if __name__ == "__main__": tyro.cli(main)
