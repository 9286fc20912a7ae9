"""How long an evaluation takes besides the network's own time: simulated probability maps of 2146 slices at 256 px,
scored at the size of their files, 640 px.

    python benchmarks/evaluate.py [--count 2146] [--size 256] [--file 640]

With --file 256 nothing has to be brought back. The slices scored are `count`; as many as the Kaggle set has in train
(1502) and valid (429) stand beside them, for baselines and temperature. Each part is given in seconds of the processor.
"""
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from machine import machine

import tumorseg as ts
from tumorseg.data.images import mask_to_square
from tumorseg.data.slices import load_slices, save_slices
from tumorseg.evaluation import evaluate as module
from tumorseg.model.checkpoint import save_model
from tumorseg.model.inference import ModelInfo

PARTS = ["score_slices", "count_masks", "count_tumours", "surface_scores", "logit_counts", "baseline_scores",
         "summarise", "score_tables"]


def simulate(splits, size, file):
    "Bright discs in noise, one in ten without tumour, eight slices a patient; the masks at the size of the files."
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:file, :file].astype(np.float32)
    for number, split in enumerate(splits):
        row, column = rng.uniform(.3 * file, .7 * file, 2)
        radius = rng.uniform(.02 * file, .13 * file) * (rng.random() > .1)
        mask = (np.hypot(rows - row, columns - column) < radius).astype(np.uint8)
        image = rng.integers(40, 90, (1, size, size), dtype=np.uint8) + 90 * mask_to_square(mask, size)
        label = "contour" if mask.any() else ""
        yield image, mask, dict(name=f"{split}/{number}.png", split=split, patient=f"p{number // 8}",
                                category=1 + number % 3, label=label, height=file, width=file)


def simulated_maps(images):
    "Maps that follow the bright disc, softly, with specks of their own: more edge than a trained network's have."
    from scipy import ndimage
    rng, maps = np.random.default_rng(1), np.empty((len(images), *images.shape[2:]), np.float32)
    for image, values in zip(images[:, 0], maps):
        values[:] = 1 / (1 + np.exp((115 - ndimage.uniform_filter(image.astype(np.float32), 9)) / 6))
        if rng.random() < .2:
            row = rng.integers(5, image.shape[0] - 12, 2)[0]
            values[row:row + 6, 20:26] = .9
    return maps


def timed(call, note):
    "The same function; `note` is told the wall-clock and processor seconds of each call."
    def measured(*given, **named):
        start, worked = time.perf_counter(), time.process_time()
        result = call(*given, **named)
        note(time.perf_counter() - start, time.process_time() - worked)
        return result
    return measured


def main(count: int = 2146, # slices that are scored
         size: int = 256, # side of each, pixels
         file: int = 640, # side of their files, at which they are scored, pixels
         ) -> None:
    "Make the slices, make the maps, and time all the rest."
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        splits = ["test"] * count + ["valid"] * 429 + ["train"] * 1502
        save_slices(Path(folder) / "slices", simulate(splits, size, file), len(splits), 1, size)
        slices = load_slices(Path(folder) / "slices")
        never_asked = ts.UNet(width=1, depth=1)
        save_model(Path(folder) / "model.safetensors", never_asked, ModelInfo(size, (0.,), (1.,)))
        network, parts, total = [], {}, []
        ts.Segmenter.slices = timed(lambda self, images: simulated_maps(images), lambda *spent: network.append(spent))
        for name in PARTS:
            def note(seconds, worked, name=name): parts[name] = parts.get(name, 0) + worked
            setattr(module, name, timed(getattr(module, name), note))
        summary = timed(module.evaluate, lambda *spent: total.extend(spent))(folder, slices)
    seconds, worked = np.array(total) - np.sum(network, axis=0)
    print(f"{count} slices at {size} px, scored at {file} px: {summary['detection']['tumours']} tumours, "
          f"Dice {summary['dice_mean']:.3f}")
    print(pd.Series(parts).sort_values(ascending=False).round(1).to_string())
    print(f"evaluate besides the network: {seconds:.1f} s, in which the processor worked {worked:.1f} s")


if __name__ == "__main__": tyro.cli(main)
