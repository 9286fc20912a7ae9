"""Two runs on the same slices: the mean difference of their Dice, with a 95 % bootstrap interval and Wilcoxon's signed-rank test.

    python benchmarks/paired.py RUN RUN      (both evaluated: `tumorseg evaluate RUN DATA` writes slices.csv)
"""
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from scipy.stats import wilcoxon

from tumorseg.metrics import bootstrap_interval


def main(first: tyro.conf.Positional[Path], second: tyro.conf.Positional[Path]) -> None:
    "Print the difference, second minus first."
    a, b = (pd.read_csv(run / "slices.csv", keep_default_na=False).set_index("name") for run in (first, second))
    if set(a.index) != set(b.index): raise SystemExit("The two runs were not evaluated on the same slices.")
    patients, difference = b["patient"].to_numpy(), (b["dice"] - a["dice"].reindex(b.index)).to_numpy()
    known = bool((patients != "").all())
    low, high = bootstrap_interval(difference, patients if known else np.arange(len(difference)))
    print(f"Dice {a['dice'].mean():.3f} and {b['dice'].mean():.3f}: difference {difference.mean():+.3f} ({low:+.3f} to {high:+.3f} over "
          f"{'patients' if known else 'slices'}), Wilcoxon p = {wilcoxon(difference).pvalue:.2f}, {len(difference)} slices")


if __name__ == "__main__": tyro.cli(main)
