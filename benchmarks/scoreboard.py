"""What other networks reach in the same loop and the same minutes: segmentation_models_pytorch's Unet with a ResNet34 (no weights downloaded),
MONAI's BasicUNet, and ours. Each network gets as many epochs as fit into the minutes on this machine.

    python benchmarks/scoreboard.py kaggle --out runs/k --minutes 13 --split official
    python benchmarks/scoreboard.py figshare --out runs/e --minutes 8 --folds 5      every slice once, without its patient in training

Needs `pip install segmentation-models-pytorch monai` for the others. What is finished is kept: the same command goes on.
"""
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import tyro
from machine import machine

from tumorseg.config import Config
from tumorseg.data import Slices
from tumorseg.evaluate import evaluate
from tumorseg.folds import choose_folds, pool_folds
from tumorseg.patients import choose_split, save_folds, use_folds, with_patients
from tumorseg.run import first_network
from tumorseg.sources import open_data
from tumorseg.train import resume, train


def resnet34(slices, config):
    import segmentation_models_pytorch as smp
    return smp.Unet("resnet34", encoder_weights=None, in_channels=slices.images.shape[1], classes=1)


def basicunet(slices, config):
    from monai.networks.nets import BasicUNet
    return BasicUNet(spatial_dims=2, in_channels=slices.images.shape[1], out_channels=1)


NETWORKS = {"ours": first_network, "resnet34": resnet34, "basicunet": basicunet}


def build(name, slices, config):
    torch.manual_seed(config.seed)
    return NETWORKS[name](slices, config)


def speed(name: str, slices: Slices, config: Config) -> float:
    "Slices a second of the second epoch of a short training."
    few = slices[slices.rows_of("train")[:12 * config.batch]], slices[slices.rows_of("valid")[:config.batch]]
    part = Slices(*(torch.cat([torch.from_numpy(getattr(one, kind)[:]) for one in few]).numpy() for kind in ("images", "masks")),
                  pd.concat([one.table for one in few], ignore_index=True))
    with tempfile.TemporaryDirectory() as folder:
        run = train(part, Path(folder) / "run", replace(config, epochs=2), build(name, slices, config), on_epoch=lambda *_: None)
        return float(pd.read_csv(run / "history.csv")["slices_per_second"].iloc[-1])


def run_one(name: str, slices: Slices, run: Path, config: Config) -> dict:
    "Train or go on, and score; what is finished is read."
    network = build(name, slices, config)
    if not (run / "metrics.json").exists():
        silent = dict(on_epoch=lambda *_: None)
        if (run / "config.json").exists(): resume(slices, run, network, **silent)
        else: train(slices, run, config, network, **silent)
        evaluate(run, slices, network=build(name, slices, config))
    return json.loads((run / "metrics.json").read_text())


def main(data: tyro.conf.Positional[str], # folder of data, or its name
         out: Path, # folder for the runs
         minutes: float = 13, # for each training
         size: int = 128, # side of the slices, pixels
         split: str = "", # as for `tumorseg train`, without --folds
         folds: int = 0, # number of folds by patients, or 0 for one split
         patients: Path | None = None, # table of patients
         networks: tuple[str, ...] = tuple(NETWORKS), # of ours, resnet34, basicunet
         ) -> None:
    "Print the table."
    slices = open_data(data, size)
    if patients: slices = with_patients(slices, patients)
    print(f"{data}, {size} px, {minutes:g} minutes a training. {machine()}\n")
    print("| network | parameters | epochs | minutes a training | test Dice (95 %) | pooled |\n|---|---|---|---|---|---|")
    for name in networks:
        place = out / name
        made = choose_folds(slices, "patients", folds) if folds else None
        parts = {f"fold_{fold}": use_folds(slices, made, fold) for fold in range(1, folds + 1)} if folds else {"run": choose_split(slices, split)[0]}
        first = next(iter(parts.values()))
        known = place / "epochs.json"
        if not known.exists():
            place.mkdir(parents=True, exist_ok=True)
            rate = speed(name, first, Config())
            known.write_text(json.dumps(max(1, math.floor(minutes * 60 * rate / len(first.rows_of("train"))))))
        config = Config(epochs=json.loads(known.read_text()))
        if folds: save_folds(place / "folds.json", made)
        found = [run_one(name, part, place / run, config) for run, part in parts.items()]
        summary = pool_folds(place) if folds else found[0]
        took = sum(pd.read_csv(place / run / "history.csv")["seconds"].sum() for run in parts) / 60 / len(parts)
        count = sum(value.numel() for value in build(name, first, config).parameters()) / 1e6
        print(f"| {name} | {count:.1f} M | {config.epochs} | {took:.1f} | {summary['dice_mean']:.3f} ({summary['dice_ci_low']:.3f}-"
              f"{summary['dice_ci_high']:.3f}, over {summary['interval_over']}) | {summary['dice_pooled']:.3f} |", flush=True)


if __name__ == "__main__": tyro.cli(main)
