"""Whether this checkout does what an earlier revision did: the same weights byte for byte, the same words of commands.

    python benchmarks/identical.py 494a2d6

Both train the demo set with seed 0 in folders of their own, one after the other. Exit code 1 where anything differs.
"""
import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--epochs 2 --width 4 --depth 2 --batch 8 --size 48"
COMMANDS = [
    "audit data --size 48 --json audit.json --figure audit.png",
    f"train data --out run {SMALL}",
    f"train data --out other {SMALL} --seed 1",
    "evaluate run data",
    "compare run other data",
    f"cross-validate data --out folds --folds 3 {SMALL}",
    f"tune data --out search --trials 4 {SMALL}",
    "report run data",
    "doctor data run",
    "predict picture.jpg --model run --out masks",
    "predict missing.jpg --model run --out masks",
    "train nothing --out run2",
    "fetch imagenet",
]
# Files without times, paths and versions
KEPT = ["model.safetensors", "slices.csv", "metrics.json", "audit.json", "best.json", "*_mask.png"]


def run(python: str, checkout: Path, folder: Path, demo: Path) -> dict[str, str]:
    "What each command says, and a fingerprint of each file that it leaves."
    code = "import sys; from tumorseg.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1",
                   "XDG_CACHE_HOME": str(folder / "cache")}
    folder.mkdir()
    (folder / "data").symlink_to(demo)
    (folder / "picture.jpg").write_bytes(sorted((demo / "test").glob("*.jpg"))[0].read_bytes())
    found = {}
    for command in COMMANDS:
        done = subprocess.run([python, "-c", code, *command.split()],
                              cwd=folder, env=environment, capture_output=True, text=True)
        found[command] = f"exit {done.returncode}\n{done.stdout}"
        if done.returncode: found[command] += done.stderr
        print(f"  {command}: exit {done.returncode}", flush=True)
    for pattern in KEPT:
        for path in sorted(folder.rglob(pattern)):
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="a commit of this repository")
    revision = parser.parse_args().revision
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worktree = ["git", "worktree"]
        subprocess.run([*worktree, "add", "--detach", "-q", folder / "checkout", revision], cwd=ROOT, check=True)
        try:
            make = ("import sys; from tumorseg.demo.tumours import write_demo; "
                    "write_demo(sys.argv[1], patients=12, size=96)")
            subprocess.run([sys.executable, "-c", make, folder / "demo"], cwd=ROOT, check=True)
            runs = []
            for checkout, where in ((folder / "checkout", "before"), (ROOT, "now")):
                print(where, flush=True)
                runs.append(run(sys.executable, checkout, folder / where, folder / "demo"))
        finally:
            subprocess.run([*worktree, "remove", "--force", folder / "checkout"], cwd=ROOT, check=True)
    before, now = runs
    names = sorted(before | now)
    differing = [name for name in names if before.get(name) != now.get(name)]
    for name in differing:
        print(f"DIFFERS {name}\n--- before\n{before.get(name)}\n--- now\n{now.get(name)}")
    print(f"{len(names) - len(differing)} of {len(names)} outputs and files are the same")
    sys.exit(bool(differing))


if __name__ == "__main__": main()
