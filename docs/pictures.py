"""The picture at the top of README: one training run on the demo set, from its worst slice to its best.

    tumorseg demo --out demo
    python docs/pictures.py demo/run demo/data
"""
from pathlib import Path

import matplotlib.pyplot as plt
import tyro
from matplotlib.patches import Patch

import tumorseg as ts
from tumorseg.core import read_table
from tumorseg.data.images import read_image
from tumorseg.pictures import FALSE, FOUND, MISSED, overlay, save_figure

IMAGES = Path(__file__).resolve().parent.parent / "Images"
RANKS = {"worst": 0, "15 % are worse": .15, "median": .5, "best": 1} # among the slices with a tumour


def main(run: tyro.conf.Positional[Path], # folder of the run, evaluated
         data: tyro.conf.Positional[Path], # folder of the demo set
         ) -> None:
    "Write Images/demo_predictions.png."
    scores = read_table(run / "slices.csv")
    tumours = scores.query("tp + fn > 0").sort_values("dice", kind="stable")
    chosen = {title: tumours.iloc[round(rank * (len(tumours) - 1))] for title, rank in RANKS.items()}
    chosen["most marked falsely"] = scores.loc[scores["fp"].idxmax()]
    slices, segmenter = ts.open_data(data, ts.Run(run).size), ts.Segmenter(run)
    rows = {name: row for row, name in enumerate(slices.table["name"])}
    figure, axes = plt.subplots(2, len(chosen), figsize=(11, 5.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=.08)
    for (plain, marked), (title, score) in zip(axes.T, chosen.items()):
        grey = read_image(data / score["name"])[0]
        plain.imshow(grey, cmap="gray", vmin=0, vmax=255)
        plain.set_title(title, fontsize=12)
        marked.imshow(overlay(grey, segmenter.mask(data / score["name"]), slices.full_mask(rows[score["name"]]), .75))
        marked.set_title(f"Dice {score['dice']:.2f}", fontsize=12)
    for ax in axes.flat: ax.axis("off")
    key = [Patch(color=colour, label=name) for name, colour in
           (("tumour found", FOUND), ("tumour missed", MISSED), ("marked where there is none", FALSE))]
    figure.legend(handles=key, loc="outside lower center", ncols=3, fontsize=12, frameon=False)
    save_figure(IMAGES / "demo_predictions.png", figure, dpi=100)


if __name__ == "__main__": tyro.cli(main)
