"""Fails where nbdev-clean or nbdev-export would change a file: the notebooks are the source, and what is committed is what they give."""
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
files = lambda: {path: path.read_bytes() for folder, ending in (("nbs", "*.ipynb"), ("tumorseg", "*.py")) for path in (root / folder).rglob(ending)}

before = files()
for command in ("nbdev-clean", "nbdev-export"):
    subprocess.run([Path(sys.executable).parent / command], cwd=root, check=True)
after = files()
changed = sorted(str(path.relative_to(root)) for path in before.keys() | after.keys() if before.get(path) != after.get(path))
if changed: sys.exit(f"nbdev-clean and nbdev-export changed {', '.join(changed)}: look at the changes and commit them.")
print(f"{len(before)} files are as nbdev-clean and nbdev-export leave them")
