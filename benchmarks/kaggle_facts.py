"""What the Kaggle set is: the facts that README and the notebooks state, from the files themselves.

    python benchmarks/kaggle_facts.py kaggle --patients patients.csv --contours figshare

Writes results/audit_kaggle.json, which is what `tumorseg audit --json` writes, with long lists of file names as their
length, and results/subsets_kaggle.csv, the slices of each split by category.
"""
import time
from pathlib import Path

import numpy as np
import tyro
from machine import machine

import tumorseg as ts
from tumorseg.core import save_json, save_table
from tumorseg.quality.overview import count_subsets

RESULTS = Path(__file__).resolve().parent.parent / "results"


def shortened(facts):
    "Lists of many file names as their length."
    if isinstance(facts, dict): return {key: shortened(value) for key, value in facts.items()}
    return len(facts) if isinstance(facts, list) and len(facts) > 10 else facts


def main(data: tyro.conf.Positional[str], # folder of the set, or kaggle
         patients: Path, # table of patients
         contours: str, # folder of the figshare contours, or figshare
         ) -> None:
    "Write both files."
    slices = ts.open_data(data, 128, patients=patients)
    experts = ts.open_data(data, 128, patients=patients, contours=contours)
    start = time.perf_counter()
    facts = ts.audit(slices, contours=experts)
    seconds = time.perf_counter() - start
    drawn = np.flatnonzero((experts.table["label"] == "contour") & (experts.areas > 0))
    larger = [slices.full_mask(row).sum() / experts.full_mask(row).sum() for row in drawn]
    facts |= {"verdict": ts.verdict(facts), "box_to_contour_area": round(float(np.median(larger)), 2),
              "contours_compared": len(larger), "audit_seconds": round(seconds, 1), "machine": machine()}
    save_json(RESULTS / "audit_kaggle.json", shortened(facts))
    save_table(RESULTS / "subsets_kaggle.csv", count_subsets(slices).reset_index(names="split"))
    print((RESULTS / "subsets_kaggle.csv").read_text())


if __name__ == "__main__": tyro.cli(main)
