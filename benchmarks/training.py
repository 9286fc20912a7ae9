"""How fast training is: our loop beside one constant batch, MONAI's loop and the plain loop of most U-Net repositories.

    python benchmarks/training.py [--size 128] [--rounds 3] [--patients 120] [--compile]

Same U-Net (width 16, depth 4), same size, batch, loss and augmentation for all; the competitors take turns in one
process, and the table has the median of the rounds. The plain loop reads and shrinks files of 640 px, which the Kaggle
set has, and in a row of its own files that have been shrunk before. --compile adds the constant batch with
torch.compile, and says how long its warm-up was. MONAI needs `pip install monai pytorch-ignite`; without it its rows
are left out.
"""
import math
import statistics
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from machine import machine
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import tumorseg as ts
from tumorseg.model.inference import ModelInfo, autocast, best_device, best_precision, measure_normalisation, normalise
from tumorseg.model.losses import dice_ce_loss
from tumorseg.training.train import first_network


def wait(device):
    "A GPU works on after the call has returned."
    if device.type == "cuda": torch.cuda.synchronize()


def adamw(network, config, fused=False):
    return torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused)


class OneBatch:
    "The same steps on one batch that never changes: what the hardware gives for this network, whatever the data."
    def __init__(self, slices, config, info, device, compiled=False):
        rows = slices.rows_of("train")[:config.batch]
        self.images = normalise(torch.from_numpy(np.array(slices.images[rows])).to(device), info)
        self.masks = torch.from_numpy(np.array(slices.masks[rows])).to(device)[:, None]
        self.network = first_network(slices, config).to(device, memory_format=torch.channels_last).train()
        self.optimizer = adamw(self.network, config, fused=True)
        self.config, self.device = config, device
        self.run = torch.compile(self.network) if compiled else self.network

    def __call__(self, steps):
        start = time.perf_counter()
        for _ in range(steps):
            with autocast(self.device, best_precision(self.device)): logits = self.run(self.images)
            loss = dice_ce_loss(logits, self.masks)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
        wait(self.device)
        return steps * len(self.images) / (time.perf_counter() - start)


class Ours:
    "tumorseg.train itself: data, augmentation, moving average, progress bar, guards. Its speed is without validation."
    def __init__(self, slices, config, folder):
        few = slices.rows_of("valid")[:config.batch]
        self.slices = slices[np.sort(np.concatenate([slices.rows_of("train"), few]))]
        self.config, self.folder, self.number = config, folder, 0

    def __call__(self, steps):
        self.number += 1
        rows = self.slices.rows_of("train")[:steps * self.config.batch]
        part = self.slices[np.sort(np.concatenate([rows, self.slices.rows_of("valid")]))]
        run = ts.train(part, self.folder / f"ours{self.number}", self.config, on_epoch=lambda *_: None)
        return run.history["slices_per_second"].iloc[-1] # the first epoch warms up


class Files(Dataset):
    "A file for each image and each mask, read again every time, augmented one by one: as popular repositories do it."
    def __init__(self, folder, config, info):
        self.files, self.info, self.size = sorted(folder.glob("*_image.png")), info, info.size
        low, high = config.degrees
        sides = [v2.RandomRotation(side, v2.InterpolationMode.BILINEAR) for side in ((low, high), (-high, -low))]
        turned = v2.RandomApply([v2.RandomChoice(sides)], p=config.rotation_p)
        brighter = v2.RandomApply([v2.ColorJitter(brightness=config.brightness)], p=config.brightness_p)
        self.transform = v2.Compose([brighter, turned])

    def __len__(self): return len(self.files)

    def __getitem__(self, number):
        file = self.files[number]
        picture, outline = Image.open(file), Image.open(file.with_name(file.name.replace("_image", "_mask")))
        side = (self.size, self.size)
        image = torch.from_numpy(np.array(picture.resize(side, Image.Resampling.BICUBIC)))[None]
        mask = torch.from_numpy(np.array(outline.resize(side, Image.Resampling.NEAREST)) // 255)
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return (image.float() - self.info.mean[0]) / self.info.std[0], mask.as_subclass(torch.Tensor)


class Plain:
    "The plain loop: Dataset of files, DataLoader with two workers, AdamW; float32, or autocast."
    def __init__(self, slices, config, info, device, folder, half):
        # Its workers end with each call, so that they do not work on beside the next loop
        self.loader = DataLoader(Files(folder, config, info), config.batch, shuffle=True, drop_last=True, num_workers=2,
                                 pin_memory=device.type == "cuda")
        self.network = first_network(slices, config).to(device).train()
        self.optimizer = adamw(self.network, config)
        self.precision, self.config, self.device = best_precision(device) if half else "no", config, device

    def __call__(self, steps):
        done, start = 0, None
        while done <= steps:
            for images, masks in self.loader:
                with autocast(self.device, self.precision): logits = self.network(images.to(self.device))
                loss = dice_ce_loss(logits, masks.to(self.device)[:, None])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                loss.item() # they print it at each step
                if start is None: start = time.perf_counter() # the first step warms up
                done += 1
                if done > steps: break
        wait(self.device)
        return steps * self.config.batch / (time.perf_counter() - start)


class HalfOnCpu(torch.nn.Module):
    "MONAI's amp is CUDA's only; on a CPU its loop gets the same half precision this way."
    def __init__(self, network, device):
        super().__init__()
        self.network, self.device = network, device

    def forward(self, x):
        with autocast(self.device, best_precision(self.device)): return self.network(x)


class Monai:
    "CacheDataset, ThreadDataLoader, SupervisedTrainer with amp, as MONAI's fast-training guide has them."
    def __init__(self, slices, config, info, device, half):
        from monai.data import CacheDataset, ThreadDataLoader
        from monai.engines import SupervisedTrainer
        from monai.transforms import Compose, EnsureTyped, NormalizeIntensityd, RandRotated, RandScaleIntensityd
        rows, angles = slices.rows_of("train"), tuple(math.radians(d) for d in config.degrees)
        data = [dict(image=np.float32(slices.images[row]), label=np.float32(slices.masks[row][None])) for row in rows]
        both = ["image", "label"]
        transforms = Compose([
            NormalizeIntensityd("image", subtrahend=info.mean[0], divisor=info.std[0]), EnsureTyped(both),
            RandScaleIntensityd("image", factors=config.brightness, prob=config.brightness_p),
            RandRotated(both, range_x=angles, prob=config.rotation_p, mode=["bilinear", "nearest"],
                        padding_mode="zeros")])
        cached = CacheDataset(data, transforms, num_workers=2, progress=False)
        loader = ThreadDataLoader(cached, batch_size=config.batch, shuffle=True, drop_last=True, num_workers=0)
        network = first_network(slices, config).to(device).train()
        if half and device.type == "cpu": network = HalfOnCpu(network, device)
        self.make = partial(SupervisedTrainer, device=device, train_data_loader=loader, network=network,
                            optimizer=adamw(network, config), loss_function=dice_ce_loss,
                            amp=half and device.type == "cuda", decollate=False)
        self.config, self.device, self.length = config, device, len(loader)

    def __call__(self, steps):
        from ignite.engine import Events
        trainer, times = self.make(max_epochs=math.ceil((steps + 1) / self.length)), []
        def note(engine):
            wait(self.device)
            times.append(time.perf_counter())
            if len(times) > steps: engine.terminate()
        trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
        trainer.run()
        return steps * self.config.batch / (times[-1] - times[0]) # the first step warms up


def write_files(slices, rows, folder, side):
    "Each slice and its mask as PNG files of that side."
    folder.mkdir()
    for row in rows:
        for name, picture in (("image", slices.images[row, 0]), ("mask", slices.masks[row] * np.uint8(255))):
            resized = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            resized.save(folder / f"{row:05d}_{name}.png")
    return folder


def competitors(slices: ts.Slices, config: ts.Config, info: ModelInfo, folder: Path, compiled: bool) -> dict:
    "Name and loop of each."
    rows, device = slices.rows_of("train"), best_device()
    small = write_files(slices, rows, folder / "small", info.size)
    large = write_files(slices, rows, folder / "large", 640)
    loops = {"one constant batch": OneBatch(slices, config, info, device),
             "tumorseg.train": Ours(slices, config, folder)}
    if find_spec("monai") and find_spec("ignite"):
        loops["MONAI, as recommended"] = Monai(slices, config, info, device, half=device.type == "cuda")
        loops["MONAI, half precision on the CPU too"] = Monai(slices, config, info, device, half=True)
    else: print("MONAI or pytorch-ignite is not installed: its rows are left out.", file=sys.stderr)
    loops["plain loop, float32"] = Plain(slices, config, info, device, large, half=False)
    loops["plain loop, autocast"] = Plain(slices, config, info, device, large, half=True)
    loops["plain loop, float32, files shrunk before"] = Plain(slices, config, info, device, small, half=False)
    if compiled: loops["one constant batch, torch.compile"] = OneBatch(slices, config, info, device, compiled=True)
    return loops


def measure(size: int, rounds: int, patients: int, steps: int, batch: int, compiled: bool,
            folder: Path) -> pd.DataFrame:
    "Slices a second of each competitor, a column a round."
    slices = ts.open_data(ts.write_demo(folder / "demo", patients=patients), size)
    config = ts.Config(epochs=2, batch=batch)
    rows = slices.rows_of("train")
    steps, info = min(steps, len(rows) // batch - 1), ModelInfo(size, *measure_normalisation(slices.images[rows]))
    loops = competitors(slices, config, info, folder, compiled)
    for name, loop in loops.items(): # everything is loaded and warm
        start = time.perf_counter()
        loop(2)
        took = time.perf_counter() - start
        if "compile" in name: print(f"torch.compile took {took:.0f} s for its first two steps.\n")
    return pd.DataFrame([{name: loop(steps) for name, loop in loops.items()} for _ in range(rounds)]).T


def main(size: int = 128, rounds: int = 3, patients: int = 120, steps: int = 16, batch: int = 16,
         compile: bool = False) -> None:
    "Print the table."
    with tempfile.TemporaryDirectory() as folder:
        speeds = measure(size, rounds, patients, steps, batch, compile, Path(folder))
    ours = speeds.loc["tumorseg.train"]
    print(f"Training, {size} px, batch {batch}, {steps} steps, {rounds} rounds in turn. {machine()}\n")
    print("| loop | slices a second, median (least-most) | tumorseg.train is so many times as fast, median of rounds |")
    print("|---|---|---|")
    for name, row in speeds.iterrows():
        spread = f"{row.min():.1f}-{row.max():.1f}"
        print(f"| {name} | {row.median():.1f} ({spread}) | {statistics.median(ours / row):.2f} |")


if __name__ == "__main__": tyro.cli(main)
