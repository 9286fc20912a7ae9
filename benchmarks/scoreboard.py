"""What other networks reach in the same loop and the same minutes: segmentation_models_pytorch's Unet with a ResNet34
(no weights downloaded), MONAI's BasicUNet, and ours. Each network gets the number of epochs that comes nearest to the
minutes on this machine, one at least.

    python benchmarks/scoreboard.py kaggle --out runs/k --minutes 20 --split official --patients patients.csv
    python benchmarks/scoreboard.py figshare --out runs/e --minutes 10 --folds 5

With folds every slice is scored once, by a network that has not seen its patient.

Needs `pip install segmentation-models-pytorch monai` for the others. The same command goes on where it was stopped.
"""
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from machine import machine

import tumorseg as ts
from tumorseg.core import save_json, save_table
from tumorseg.data.splits import choose_folds, save_folds, split_by
from tumorseg.evaluation.cross_validation import pool_folds
from tumorseg.metrics.intervals import bootstrap_interval, interval_groups
from tumorseg.training.train import first_network


def resnet34(slices, config):
    import segmentation_models_pytorch as smp
    return smp.Unet("resnet34", encoder_weights=None, in_channels=slices.images.shape[1], classes=1)


def basicunet(slices, config):
    from monai.networks.nets import BasicUNet
    return BasicUNet(spatial_dims=2, in_channels=slices.images.shape[1], out_channels=1)


NETWORKS = {"ours": first_network, "resnet34": resnet34, "basicunet": basicunet}
TITLES = {"ours": "tumorseg U-Net", "resnet34": "smp Unet (ResNet34)", "basicunet": "MONAI BasicUNet"}


def build(name, slices, config):
    torch.manual_seed(config.seed)
    return NETWORKS[name](slices, config)


def epoch_seconds(name: str, slices: ts.Slices, config: ts.Config) -> float:
    "How long an epoch takes, validation included: the second one of a training on a part of both splits."
    count = {split: len(slices.rows_of(split)) for split in ("train", "valid")}
    share = min(1, 8 * config.batch / count["train"])
    few = [slices[slices.rows_of(split)[:max(1, round(share * count[split]))]] for split in count]
    part = ts.Slices(*(np.concatenate([getattr(one, kind) for one in few]) for kind in ("images", "masks")),
                  pd.concat([one.table for one in few], ignore_index=True))
    with tempfile.TemporaryDirectory() as folder:
        network = build(name, slices, config)
        run = ts.train(part, Path(folder) / "run", replace(config, epochs=2), network, on_epoch=lambda *_: None)
        return float(run.history["seconds"].iloc[-1]) / share


def run_one(name: str, slices: ts.Slices, run: Path, config: ts.Config) -> dict:
    "Train or go on, and score; what is finished is read."
    if not ts.Run(run).metrics:
        ts.train(slices, run, config, build(name, slices, config), on_epoch=lambda *_: None)
        ts.evaluate(run, slices, network=build(name, slices, config))
    return ts.Run(run).metrics


def row(network: str, dice: float, low: float, high: float, over: str, slices: int, **more: float) -> dict:
    "A row of the table: what a network, or copying, reaches; printed as it is made."
    def value(name: str, form: str) -> str: return format(more[name], form) if name in more else ""
    against = ""
    if more.get("difference"):
        against = f"{more['difference']:+.3f} ({more['diff_low']:+.3f} to {more['diff_high']:+.3f})"
    columns = (network, value("parameters", ".1f"), value("epochs", "d"), value("minutes", ".1f"),
               f"{dice:.3f} ({low:.3f}-{high:.3f}, over {over})", against, value("pooled", ".3f"),
               value("nsd", ".3f"), slices)
    print("|", " | ".join(map(str, columns)), "|", flush=True)
    return dict(network=network, dice=dice, low=low, high=high, over=over, slices=slices, **more)


def main(data: tyro.conf.Positional[str], # folder of data, or its name
         out: Path, # folder for the runs
         minutes: float = 13, # for each training
         size: int = 128, # side of the slices, pixels
         split: str = "", # as for `tumorseg train`, without --folds
         folds: int = 0, # number of folds by patients, or 0 for one split
         patients: Path | None = None, # table of patients
         networks: tuple[str, ...] = tuple(NETWORKS), # of ours, resnet34, basicunet
         csv: Path | None = None, # where the table goes, too
         ) -> None:
    "Print the table."
    slices = ts.open_data(data, size, patients=patients)
    print(f"{data}, {size} px, {minutes:g} minutes a training. {machine()}\n")
    print("| network | million parameters | epochs | minutes a training | test Dice (95 %) | difference to the first, "
          "paired (95 %) | pooled | surface Dice | slices |\n" + 9 * "|---" + "|")
    made = choose_folds(slices, "patients", folds) if folds else None
    if folds: parts = {f"fold_{fold}": split_by(slices, made, fold) for fold in range(1, folds + 1)}
    else: parts = {"run": ts.choose_split(slices, split)}
    first, rows = next(iter(parts.values())), []
    for name in networks:
        place = out / name
        if not (place / "epochs.json").exists():
            save_json(place / "epochs.json", max(1, round(minutes * 60 / epoch_seconds(name, first, ts.Config()))))
        config = ts.Config(epochs=json.loads((place / "epochs.json").read_text()))
        if folds: save_folds(place / "folds.json", made)
        found = [run_one(name, part, place / run, config) for run, part in parts.items()]
        summary = pool_folds(place) if folds else found[0]
        scores = ts.Run(place if folds else place / "run").scores.set_index("name")
        if not rows: base, baselines = scores["dice"], summary["baselines"][1:] # all but the empty mask
        difference = scores["dice"] - base
        low, high = bootstrap_interval(difference, interval_groups(scores["patient"])[0])
        rows.append(row(
            TITLES[name], *(summary[f"dice_{key}"] for key in ("mean", "ci_low", "ci_high")), summary["interval_over"],
            summary["n_slices"], epochs=config.epochs, pooled=summary["dice_pooled"], nsd=summary["nsd_mean"],
            parameters=sum(value.numel() for value in build(name, first, config).parameters()) / 1e6,
            minutes=sum(ts.Run(place / run).history["seconds"].sum() for run in parts) / 60 / len(parts),
            difference=float(difference.mean()), diff_low=low, diff_high=high))
    rows += [row(one.pop("baseline"), **one) for one in baselines]
    if csv: save_table(csv, pd.DataFrame(rows))


if __name__ == "__main__": tyro.cli(main)
