"""How quick is browsing? Opening, drawing and the Dice of simulated maps at 256 px, and the memory meanwhile (Linux).

    python benchmarks/browse.py [--many 5000] [--folder FOLDER]     FOLDER keeps the slices (700 MB) for the next time
"""
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import tyro
from machine import machine

import tumorseg as ts
from tumorseg.data.slices import load_slices, save_slices
from tumorseg.model.checkpoint import save_model
from tumorseg.model.inference import ModelInfo
from tumorseg.pictures import to_png
from tumorseg.widgets.gallery import draw_slice

SIZE = 256


def simulate(count: int):
    "Discs as tumours, in noise as bright as a scan's; the probability falls off around a shifted centre."
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:SIZE, :SIZE].astype(np.float32)
    for number in range(count):
        row, column, radius, shift = *rng.uniform(80, 170, 2), rng.uniform(6, 30), rng.uniform(-8, 8)
        mask = (np.hypot(rows - row, columns - column) < radius).astype(np.uint8)
        head = np.hypot(rows - 128, columns - 128) < 100
        image = np.uint8(head * (70 + 60 * mask) + rng.integers(0, 30, (SIZE, SIZE)))
        probability = np.clip((radius + 6 - np.hypot(rows - row - shift, columns - column)) / 12, 0, 1)
        row = dict(name=f"test/{number}.png", split="test", patient=f"p{number // 8}", category=1 + number % 2,
                   label="contour", height=SIZE, width=SIZE)
        yield image[None], mask, row, probability


def anonymous() -> float:
    "Memory of this process in MB that is not a file's (Linux)."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def median_ms(action, values) -> str:
    "Median of one call, and in brackets what 95 of 100 stay under."
    seconds = []
    for value in values:
        start = time.perf_counter()
        action(value)
        seconds.append(time.perf_counter() - start)
    return f"{1000 * np.median(seconds):.1f} ms (95 %: {1000 * np.percentile(seconds, 95):.1f} ms)"


def make(folder: Path, many: int) -> None:
    "Slices on disk, and a run that has its predictions of them: the maps are simulated, so the network is not asked."
    save_slices(folder / "slices", (sample[:3] for sample in simulate(many)), many, 1, SIZE)
    save_model(folder / "run/model.safetensors", ts.UNet(1, 16, 4), ModelInfo(SIZE, (60.,), (40.,)))
    maps = (sample[3] for sample in simulate(many))
    with mock.patch.object(ts.Segmenter, "slices", lambda self, images: np.stack([next(maps) for _ in images])):
        ts.predict_split(folder / "run", load_slices(folder / "slices"))


def measure(folder: Path, many: int) -> None:
    if not (folder / "run/predictions").exists(): make(folder, many)
    start = time.perf_counter()
    predictions = ts.predict_split(folder / "run", load_slices(folder / "slices"))
    compared = time.perf_counter() - start
    browser = ts.browse(predictions)
    opened = time.perf_counter() - start
    print(f"| opening {len(predictions)} slices until the first is shown (once) | {opened:.2f} s |")
    print(f"| of this: the maps, and whether they are still those of the model and the slices | {compared:.2f} s |")

    few = replace(predictions, slices=predictions.slices[:200], percent=predictions.percent[:200],
                  counts=predictions.counts[:200])
    thresholds, places = np.tile(np.arange(5, 95) / 100, 3), 1 + np.arange(50, 550) % len(predictions)
    small = ts.browse(few)
    for view, style in (("truth and prediction", "fill"), ("truth and prediction", "outline"), ("probability", "fill")):
        draw = partial(draw_slice, few, 7, view=view, style=style)
        took = median_ms(lambda threshold, draw=draw: to_png(draw(threshold)), thresholds)
        print(f"| the picture at another threshold: {view}, {style} | {took} |")
    for shown in (few, predictions):
        took = median_ms(lambda threshold, shown=shown: shown.dice(threshold).mean(), thresholds)
        print(f"| the mean Dice of {len(shown)} slices at another threshold | {took} |")
    took = median_ms(lambda threshold: setattr(small.threshold, "value", threshold), thresholds)
    print(f"| all that the widget does when the threshold moves | {took} |")

    def go(number): browser.slice.value = int(number)
    for number in range(2, 50): go(number)
    before, moved = anonymous(), median_ms(go, places)
    print(f"| all that the widget does for another slice of {len(predictions)} | {moved} |")
    print(f"| more memory after looking at {len(places)} of them | {anonymous() - before:.1f} MB |")


def main(many: int = 5000, folder: Path | None = None) -> None:
    "Print the table."
    print(f"{SIZE} px. {machine()}\n\n| what | median |\n|---|---|")
    if folder: return measure(folder, many)
    with tempfile.TemporaryDirectory() as temporary: measure(Path(temporary), many)


if __name__ == "__main__": tyro.cli(main)
