"""What comes before and after training: opening the data, predicting, and how soon a training is nearly done.

    python benchmarks/use.py [--data FOLDER] [--size 128] [--run RUN]
"""
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from machine import machine

import tumorseg as ts
from tumorseg.model.inference import ModelInfo, best_device, normalise, probabilities


def seconds(call, rounds=5):
    "Median seconds of a call, after one to warm up."
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def until_95_percent(run: Path) -> tuple[int, float]:
    "Epoch and minutes after which the validation Dice first reached 95 % of the best of the run."
    history = pd.read_csv(run / "history.csv")
    first = int((history["valid_dice"] >= .95 * history["valid_dice"].max()).to_numpy().argmax())
    return int(history["epoch"][first]), history["seconds"][:first + 1].sum() / 60


def main(data: Path | None = None, size: int = 128, run: Path | None = None) -> None:
    "Print the table."
    print(f"{size} px. {machine()}\n\n| what | median |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = data or ts.write_demo(Path(folder) / "demo", patients=40)
        def opened(): return ts.open_data(data, size, cache=Path(folder) / "cache")
        start = time.perf_counter()
        slices = opened()
        print(f"| opening {len(slices)} slices, the first time (once) | {time.perf_counter() - start:.1f} s |")
        print(f"| opening them again | {seconds(opened):.2f} s |")
        device, info = best_device(), ModelInfo(size, (50.,), (50.,))
        network = ts.UNet(width=16).to(device, memory_format=torch.channels_last).eval()
        plain = ts.UNet(width=16).to(device).eval()
        @torch.inference_mode()
        def float32(images): return plain(normalise(torch.from_numpy(images).to(device), info)).sigmoid().cpu()
        for batch in (1, 32):
            images = np.array(slices.images[:batch])
            ours = seconds(partial(probabilities, network, images, info)) / batch
            theirs = seconds(partial(float32, images)) / batch
            print(f"| predicting, a slice, batch of {batch} | {ours * 1e3:.1f} ms; "
                  f"in plain float32 {theirs * 1e3:.1f} ms, {theirs / ours:.2f} times as long |")
    if run:
        epoch, minutes = until_95_percent(run)
        print(f"| until 95 % of the best validation Dice | epoch {epoch}, {minutes:.1f} min |")


if __name__ == "__main__": tyro.cli(main)
