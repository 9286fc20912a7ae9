"""What holds for the whole repository: one address, a light import, a complete wheel, notebooks that GitHub shows."""
import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "tumorseg/__init__.pyi"
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
MODULES = sorted(path for path in (ROOT / "tumorseg").rglob("*.py") if path.name != "_modidx.py")
SETTINGS = ConfigParser(delimiters="=")
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
ADDRESS = f"{SETTINGS['DEFAULT']['user']}/{SETTINGS['DEFAULT']['repo']}"
PROMISED = {"torchvision"} # imported by no module: the augmentation promises to do what its transforms do

WIDTH = 120       # columns of an exported line
CELL = 60         # lines of a cell that exports: it is one idea
EXPORTED = 8_500 # lines of the library without empty ones and cell marks: raised with care

front_door = pytest.mark.skipif(not STUB.exists(), reason="there is no front door yet")


def python(code: str, **environment: str) -> str:
    "What this code prints in a fresh process."
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def imports(path: Path) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]


def offered() -> list[str]:
    "The names of the front door."
    return sorted(alias.asname or alias.name for node in imports(STUB) for alias in node.names)


def required() -> set[str]:
    "The distributions that the library asks for, without their versions."
    names = (re.split(r"[<>=!~\[]", line)[0] for line in SETTINGS["DEFAULT"]["requirements"].split())
    return {name.lower().replace("_", "-") for name in names}


# ---- one address, one version

def test_the_address_of_the_repository_is_the_one_in_settings():
    page = r"github(?:\.com|usercontent\.com)?/(?:badge/)?([\w-]+/[\w-]+)/(?:blob|tree|actions)"
    install = r"git\+https://github\.com/([\w-]+/[\w.-]+?)(?:\.git)?(?=[\s'\"\\])"
    clone = r"(?:clone|repository-code:) https://github\.com/([\w-]+/[\w-]+)"
    found = {}
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CITATION.cff", *NOTEBOOKS]:
        for addresses in re.findall(f"{page}|{install}|{clone}", path.read_text(encoding="utf-8")):
            found.setdefault("".join(addresses), set()).add(path.name)
    assert set(found) == {ADDRESS}, found
    assert {"README.md", "CONTRIBUTING.md", "CITATION.cff", "05_train.ipynb"} <= found[ADDRESS]


def test_the_figures_of_the_readme_are_those_that_were_measured():
    rows = list(csv.DictReader((ROOT / "results/healthy.csv").read_text(encoding="utf-8").splitlines()))
    shown = [row for row in rows if (row["source"], row["score"]) in {
        ("figshare, unseen patients", "sensitivity"), ("healthy, unseen groups", "specificity"),
        ("LGG after contrast", "specificity")}]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = [f"{float(row['value']):.2f} ({float(row['low']):.2f}-{float(row['high']):.2f})" for row in shown]
    assert len(cells) == 9 and not [cell for cell in cells if cell not in text]


def test_the_facts_of_the_readme_about_the_kaggle_set_are_those_of_the_audit():
    facts = json.loads((ROOT / "results/audit_kaggle.json").read_text(encoding="utf-8"))
    labels, splits = facts["labels"], facts["leakage"]["patients"]["splits"]
    baselines = {row["baseline"]: row for row in facts["baselines"]}

    def score(name): return "{dice:.3f} ({low:.3f}-{high:.3f}".format(**baselines[name])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for figure in (f"{labels['rectangles']} of {labels['annotations']} annotations are filled rectangles",
                   f"{facts['box_to_contour_area']} times as large", score("expert contour"),
                   f"{splits['valid']['leaked']} of {splits['valid']['slices']} validation",
                   f"{splits['test']['leaked']} of {splits['test']['slices']} test slices",
                   f"{splits['test']['neighbours']} of the {splits['test']['slices']} with the neighbouring slice",
                   "**Copying scores " + score("most alike slice copied").replace(" (", "** ("),
                   score("the same, not of the patient"), f"{facts['slices']}.\n"):
        assert figure in text, figure


def test_the_version_is_the_same_everywhere():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "tumorseg/__init__.py").read_text(encoding="utf-8"))[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert newest == version


# ---- the front door

def test_import_is_light():
    heavy = "torch", "torchvision", "numpy", "matplotlib", "monai", "optuna", "nilearn", "pandas"
    assert python(f"import sys, tumorseg; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_help_does_not_wait_for_torch():
    assert python("import sys, tumorseg.cli; print('torch' in sys.modules)") == "False"


@front_door
def test_import_takes_less_than_half_of_numpys():
    "A ratio, so that it holds on a slow machine; the fastest of seven in turn, so that it holds on a busy one."
    code = "import time; begun = time.perf_counter(); import {}; print(time.perf_counter() - begun)"
    seconds = {name: [] for name in ("tumorseg", "numpy")}
    for _ in range(7):
        for name in seconds: seconds[name].append(float(python(code.format(name))))
    assert min(seconds["tumorseg"]) < .5 * min(seconds["numpy"]), seconds


EVERY_NAME = """
import importlib, inspect, json, pkgutil
import tumorseg

def callables():
    found = {name: getattr(tumorseg, name) for name in NAMES}
    return {name: inspect.isfunction(value) or inspect.isclass(value) for name, value in found.items()}

before = callables()
for module in pkgutil.walk_packages(tumorseg.__path__, "tumorseg."): importlib.import_module(module.name)
print(json.dumps([tumorseg.__all__, before, callables()]))
"""


@front_door
def test_every_name_of_the_front_door_is_a_function_or_a_class_whatever_was_imported():
    "A module of the same name would take its place as soon as it is imported: `'module' object is not callable`."
    names = offered()
    listed, before, after = json.loads(python(EVERY_NAME.replace("NAMES", repr(names)), EAGER_IMPORT="1"))
    assert len(names) > 20 and set(listed) - {"__version__"} == set(names)
    assert before == after == dict.fromkeys(names, True)


# ---- the package

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel of this checkout, built once from a copy: an old build/ beside the source would go into it."
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tumorseg", folder / "tumorseg", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


def test_the_wheel_has_every_wing_and_says_that_it_is_typed(wheel):
    expected = {path.relative_to(ROOT).as_posix() for ending in ("*.py", "*.pyi", "*.html", "py.typed")
                for path in (ROOT / "tumorseg").rglob(ending)}
    assert {name for name in wheel if name.startswith("tumorseg/")} == expected
    wings = {path.parent.name for path in (ROOT / "tumorseg").glob("*/__init__.py")}
    assert len(wings) >= 9 and wings <= {name.split("/")[1] for name in expected}
    assert "tumorseg/py.typed" in expected


def test_the_wheel_needs_neither_jupyter_nor_nbdev_and_brings_the_command(wheel):
    metadata, entry = (next(text for name, text in wheel.items() if name.endswith(end))
                       for end in ("METADATA", "entry_points.txt"))
    needed = [line.split(":")[1].strip() for line in metadata.splitlines()
              if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert any(line.startswith("torch>") for line in needed) and len(needed) == len(required())
    assert not [line for line in needed if re.match(r"(jupyter|notebook|nbdev|ipykernel|execnb|fastcore)", line)]
    assert "tumorseg = tumorseg.cli:main" in entry


def test_what_is_imported_is_required_and_what_is_required_is_imported():
    names = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import): names |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: names.add(node.module.split(".")[0])
    names -= {"tumorseg", *sys.stdlib_module_names}
    distributions = packages_distributions()
    imported = {name: {found.lower().replace("_", "-") for found in distributions.get(name, [name])} for name in names}
    missing = sorted(name for name, found in imported.items() if not found & required())
    needless = sorted(required() - set().union(*imported.values()) - PROMISED)
    assert not missing, "imported, and not required"
    assert not needless, "required, and not imported"


# ---- the source

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_read_on_github(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    assert path.stat().st_size < 1_000_000
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown" and "\n>" in "".join(first["source"])


def test_notebooks_have_names_of_their_own():
    "nbdev-test names a notebook that fails without its folder."
    assert len({path.name for path in NOTEBOOKS}) == len(NOTEBOOKS) > 40


def test_links_between_notebooks_and_documents_lead_somewhere():
    documents = {path: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        documents[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [(path, link) for path, text in documents.items() for link in re.findall(r"\]\(([^)\s#]+)", text)]
    within = [(path, link) for path, link in links if not link.startswith(("http", "mailto:", "attachment:"))]
    assert len(within) > 100
    assert not [f"{path.name}: {link}" for path, link in within if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_that_exports_is_one_idea(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
        if cell["cell_type"] != "code" or not any(re.match(r"#\|\s*export", line) for line in lines): continue
        long = len(lines) > CELL
        assert not long, f"cell {cell['id']} has {len(lines)} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_exported_line_is_wide(path):
    "Line 1 is the notebook's subtitle; `__all__` is left out, since nbdev breaks its lines itself."
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    wide = [(number, line) for number, line in lines if len(line) > WIDTH and not line.startswith("__all__ = [")]
    assert not [f"line {number}: {len(line)} columns" for number, line in wide]


def test_the_library_is_small():
    lines = [line for path in MODULES for line in path.read_text(encoding="utf-8").splitlines()]
    assert 5_000 < sum(1 for line in lines if line.strip() and not line.startswith("# %%")) <= EXPORTED
