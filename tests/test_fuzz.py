"The fuzzer finds nothing in 500 cases, and it would: a reader that fails in each possible way is seen to do so."
import subprocess
import sys
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"): pytest.skip("fork, /proc and limits of memory", allow_module_level=True)

FUZZ = Path(__file__).with_name("fuzz.py")

BAD_READERS = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
import fuzz
from tumorseg.core import InputError

def refuse(folder, damaged): raise InputError(f"{damaged}: is damaged. Copy it again.")
def accept(folder, damaged): damaged.read_bytes()
def blame_nobody(folder, damaged): raise InputError("Something is wrong.")
def stumble(folder, damaged): {}["x"]
def believe(folder, damaged): fuzz.check_shares(2)
def grow(folder, damaged): np.ones(10**10)
def crash(folder, damaged): os.kill(os.getpid(), signal.SIGSEGV)
def wait(folder, damaged): time.sleep(60)
def loop(folder, damaged): sum(0 for _ in iter(int, 1))
def stray(folder, damaged): (folder / "../../stray").write_text("x")
def overwrite(folder, damaged): (folder / "good/b").write_text("longer than before")

fuzz.WORLD, fuzz.SECONDS = Path(sys.argv[1]), 1
fuzz.TARGETS.clear()
for reader in (refuse, accept, blame_nobody, stumble, believe, grow, crash, wait, loop, stray, overwrite):
    fuzz.target("good/a")(reader)
for name, number, outcome, words in fuzz.fuzz(22, 1, list(fuzz.TARGETS)): print(name, number, outcome)
"""


def test_the_fuzzer_sees_each_outcome(tmp_path):
    for name in ("home", "good"): (tmp_path / name).mkdir()
    for name in ("a", "b"): (tmp_path / "good" / name).write_text("good")
    (tmp_path / "bad_readers.py").write_text(BAD_READERS)
    path = {"PYTHONPATH": f"{FUZZ.parent}:{FUZZ.parent.parent}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "bad_readers.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=path)
    expected = dict(refuse="clean", accept="accepted", blame_nobody="unnamed", stumble="traceback", believe="nonsense",
                    grow="memory", crash="signal", wait="hang", loop="hang", stray="stray", overwrite="stray")
    told = [f"{name} {number} {outcome}" for name, outcome in expected.items() for number in (0, 1)]
    assert done.stdout.splitlines() == told, done.stdout + done.stderr[-3000:]


def test_500_damaged_files_are_refused_or_read_right():
    done = subprocess.run([sys.executable, str(FUZZ), "--cases", "500", "--seed", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-3000:]
