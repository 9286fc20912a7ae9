"""The benchmarks run and give finite numbers; how large they are is for benchmarks/README.md to say, not for a test."""
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tumorseg as ts

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def table(script, *options):
    done = subprocess.run([sys.executable, BENCHMARKS / script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize("script, options, rows", [
    ("training.py", "--size 32 --rounds 1 --patients 8 --steps 2 --batch 2",
     ("constant batch", "tumorseg.train", "plain loop")),
    ("use.py", "--size 32", ("first time", "again", "batch of 32")),
    ("gpu.py", "--tiny --width 4 --batch 1", ("32 px",)),
    ("browse.py", "--many 64", ("opening", "at another threshold", "more memory"))])
def test_a_benchmark_gives_its_rows(script, options, rows):
    lines = table(script, *options.split())
    for row in rows: assert any(row in line for line in lines), (row, lines)
    for line in lines:
        numbers = [float(number) for number in re.findall(r"[\d.]*\d", line.split("|", 2)[2])]
        assert numbers and np.isfinite(numbers).all(), line


def test_the_scoreboard_trains_each_network_scores_every_patient_once_and_goes_on(tmp_path):
    data = ts.write_demo(tmp_path / "demo", patients=6, size=48)
    options = [data, "--out", tmp_path / "runs", "--csv", tmp_path / "board.csv",
               *"--minutes 0 --size 32 --folds 3 --networks basicunet".split()]
    first = table("scoreboard.py", *options)
    names = ["MONAI BasicUNet", "one mask for all", "most alike slice copied", "the same, not of the patient"]
    assert [line.split("|")[1].strip() for line in first] == names and all("over patients" in line for line in first)
    kept = pd.read_csv(tmp_path / "board.csv")
    assert kept["network"].tolist() == names and kept["slices"].nunique() == 1 and kept["epochs"].tolist()[0] == 1
    assert table("scoreboard.py", *options) == first
