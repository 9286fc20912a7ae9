"""Fails where nbdev-clean or nbdev-export would change a file: what is committed is what the notebooks give."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def files() -> dict[Path, bytes]:
    "Every notebook and every module, with what stands in it."
    paths = [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "tumorseg").rglob("*.py")]
    return {path: path.read_bytes() for path in paths}


before = files()
for command in ("nbdev-clean", "nbdev-export"):
    subprocess.run([Path(sys.executable).parent / command], cwd=ROOT, check=True)
after = files()
changed = sorted(str(path.relative_to(ROOT)) for path in before | after if before.get(path) != after.get(path))
if changed: sys.exit(f"nbdev-clean and nbdev-export changed {', '.join(changed)}: look at the changes and commit them.")
print(f"{len(before)} files are as nbdev-clean and nbdev-export leave them")
