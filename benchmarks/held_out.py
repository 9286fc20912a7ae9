"""Is what a search found better on patients that neither it nor any training has seen? Scores its runs on the test split, which the search never
opened, and gives the paired difference: of the repeats over seeds (`--repeats`) where there are any, else of the best whole training other than
the start and the start. Ask once, when all choices are made.

    tumorseg tune kaggle --patients patients.csv --split patients --out search --timeout 3600 [--repeats 3]
    python benchmarks/held_out.py search kaggle --patients patients.csv --split patients [--csv FILE]
"""
import tempfile
from pathlib import Path

import pandas as pd
import tyro
from machine import machine

from tumorseg.core import write_whole
from tumorseg.data.patients import with_patients
from tumorseg.data.slices import Slices
from tumorseg.data.sources import open_data
from tumorseg.data.splits import choose_split
from tumorseg.tuning.seeds import paired_difference, score_repeats


def challenger_and_start(search: Path, place: Path) -> Path:
    "The runs of the search's best whole training other than the start, and of the start, under the names that repeats have."
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
    def open_at(size: int) -> Slices:
        slices = open_data(data, size)
        return choose_split(with_patients(slices, patients) if patients else slices, split)[0]
    with tempfile.TemporaryDirectory() as place:
        repeats = search / "repeats"
        scores = score_repeats(open_at, repeats if repeats.exists() else challenger_and_start(search, Path(place)), "test")
    facts = paired_difference(scores)
    if csv: write_whole(csv, scores.round(6).to_csv(index=False).encode())
    print(machine())
    print(f"test: {facts['best']:.3f} against {facts['start']:.3f}, difference {facts['difference']:+.3f} ({facts['ci_low']:+.3f} to "
          f"{facts['ci_high']:+.3f} over {facts['interval_over']}), {facts['n_slices']} slices of {facts['n_patients']} patients, seeds "
          + ", ".join(f"{seed}: {value:+.3f}" for seed, value in facts["by_seed"].items()))


if __name__ == "__main__": tyro.cli(main)
