"""Is what a search found better on patients that neither it nor any training has seen? Scores its runs on the test
split, which the search never opened, and gives the paired difference: of the repeats over seeds (`--repeats`) where
there are any, else of the best whole training other than the start and the start. Ask once, when all choices are made.

    tumorseg tune kaggle --patients patients.csv --split patients --out search --timeout 3600 [--repeats 3]
    python benchmarks/held_out.py search kaggle --patients patients.csv --split patients [--csv FILE]
"""
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
import tyro
from machine import machine

import tumorseg as ts
from tumorseg.core import save_table
from tumorseg.tuning.seeds import paired_difference, score_repeats


def challenger_and_start(search: Path, place: Path) -> Path:
    "The runs of the search's best whole training other than the start, and of the start, named as repeats are."
    table = pd.read_csv(search / "trials.csv").query("stage == 'full' and state == 'complete'")
    best = table[~table["start"]].sort_values("valid_dice").iloc[-1]
    for name, trial in (("best-0", best), ("start-0", table[table["start"]].iloc[0])):
        (place / name).symlink_to((search / "trials" / f"full-{trial['trial']:04d}").resolve())
        print(f"{name}: trial {trial['trial']}, validation Dice {trial['valid_dice']:.3f}")
    return place


def main(search: tyro.conf.Positional[Path], # folder of the search
         data: tyro.conf.Positional[str], # the data of the search
         patients: Path | None = None, # as in the search
         split: str = "", # as in the search
         csv: Path | None = None, # where the score of each slice goes
         ) -> None:
    "Print the difference."
    open_at = partial(ts.open_data, data, patients=patients, split=split)
    with tempfile.TemporaryDirectory() as place:
        repeats = search / "repeats"
        if not repeats.exists(): repeats = challenger_and_start(search, Path(place))
        scores = score_repeats(open_at, repeats, "test")
    facts = paired_difference(scores)
    if csv: save_table(csv, scores)
    print(machine())
    interval = f"{facts['ci_low']:+.3f} to {facts['ci_high']:+.3f} over {facts['interval_over']}"
    seeds = ", ".join(f"{seed}: {value:+.3f}" for seed, value in facts["by_seed"].items())
    print(f"test: {facts['best']:.3f} against {facts['start']:.3f}, difference {facts['difference']:+.3f} "
          f"({interval}), {facts['n_slices']} slices of {facts['n_patients']} patients, seeds {seeds}")


if __name__ == "__main__": tyro.cli(main)
