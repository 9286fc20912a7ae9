"""The picture at the top of README: one training run on the demo set, from its worst slice to its best.

    tumorseg demo --out demo
    python docs/pictures.py demo/run demo/data
"""
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

import tumorseg as ts
from tumorseg.evaluation.plots import plot_overlays
from tumorseg.pictures import save_figure

IMAGES = Path(__file__).resolve().parent.parent / "Images"
RANKS = {"worst": 0, "15 % are worse": .15, "median": .5, "best": 1} # among the slices with a tumour


def main(run: tyro.conf.Positional[Path], # folder of the run, evaluated
         data: tyro.conf.Positional[Path], # folder of the demo set
         ) -> None:
    "Write Images/demo_predictions.png."
    segmenter, scores = ts.Segmenter(run), ts.Run(run).scores
    tumours = scores.query("tp + fn > 0").sort_values("dice", kind="stable")
    rows = [tumours.index[round(rank * (len(tumours) - 1))] for rank in RANKS.values()] + [scores["fp"].idxmax()]
    chosen = scores.loc[rows]
    slices = ts.open_data(data, int(chosen["height"].max())) # at the size of the files
    slices = slices[pd.Index(slices.table["name"]).get_indexer(chosen["name"])]
    maps = np.stack([segmenter(data / name) for name in chosen["name"]])
    captions = chosen.assign(name=[*RANKS, "most false pixels"])
    figure = plot_overlays(slices, maps, captions, segmenter.info.threshold)
    save_figure(IMAGES / "demo_predictions.png", figure)


if __name__ == "__main__": tyro.cli(main)
