"""What holds for the repository as a whole: one address, a light import, a complete wheel, notebooks that GitHub can show."""
import json
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
SETTINGS = ConfigParser(delimiters="=")
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
ADDRESS = f"{SETTINGS['DEFAULT']['user']}/{SETTINGS['DEFAULT']['repo']}"


def test_the_address_of_the_repository_is_the_one_in_settings():
    found = {}
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *NOTEBOOKS]:
        for address in re.findall(r"github(?:\.com|usercontent\.com)?/(?:badge/)?([\w-]+/[\w-]+)/(?:blob|tree|actions)|git\+https://github\.com/([\w-]+/[\w.-]+?)(?:\.git)?(?=[\s'\"\\])",
                                  path.read_text(encoding="utf-8")):
            found.setdefault(address[0] or address[1], set()).add(path.name)
    assert set(found) == {ADDRESS}, found
    assert "README.md" in found[ADDRESS] and "05_train.ipynb" in found[ADDRESS]


def test_import_is_light():
    heavy = "torch", "torchvision", "matplotlib", "monai", "optuna", "nilearn", "pandas"
    code = f"import sys, tumorseg; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_help_does_not_wait_for_torch():
    code = "import sys, tumorseg.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_wheel_has_every_module_and_needs_neither_jupyter_nor_nbdev(tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        modules = {name for name in wheel.namelist() if name.startswith("tumorseg/")}
        metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("METADATA"))
        entry = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert modules == {path.relative_to(ROOT).as_posix() for path in (ROOT / "tumorseg").rglob("*.py")}
    required = [line.split(":")[1].strip() for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert any(line.startswith("torch>") for line in required)
    assert not [line for line in required if re.match(r"(jupyter|notebook|nbdev|ipykernel|execnb|fastcore)", line)]
    assert "tumorseg = tumorseg.cli:main" in entry


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_read_on_github(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    assert path.stat().st_size < 1_000_000
    assert notebook["cells"][0]["cell_type"] == "markdown" and "\n>" in "".join(notebook["cells"][0]["source"])


@pytest.mark.parametrize("path", sorted((ROOT / "tumorseg").rglob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_module_holds_one_idea(path):
    assert sum(1 for line in path.read_text().splitlines() if line.strip()) <= 250
