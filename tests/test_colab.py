"""The wheel in Colab's environment: nothing of it is replaced, and the notebooks run in it.

Only by name, `python -m pytest tests/test_colab.py`, because it installs a second torch (some gigabytes, minutes)."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What Colab had in August 2026, as far as tumorseg can notice; where this Python has no such wheel, pip says so
COLAB = ["torch==2.11.*", "torchvision==0.26.*", "ipywidgets==7.7.1", "notebook==6.5.7", "ipython==7.34.0",
         "numpy==2.1.3", "pycocotools==2.0.11", "kagglehub==1.0.2", "fastcore==2.2.12", "matplotlib==3.10.*",
         "scikit-learn", "pandas==2.2.*", "scipy", "h5py", "nibabel", "pillow==11.*", "tqdm", "requests", "accelerate",
         "safetensors", "platformdirs", "sqlalchemy", "lazy_loader==0.5", "pooch==1.9.0", "setuptools<81"]
NOTEBOOKS = ["00_start", "training/05_train", "widgets/02_explore", "widgets/03_preview", "widgets/04_browse",
             "widgets/05_watch", "widgets/06_page", "app"]


def packages(python):
    command = [python, "-m", "pip", "list", "--format=json"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {entry["name"]: entry["version"] for entry in json.loads(listed)}


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    "The Python of an environment with Colab's packages; TUMORSEG_COLAB names a folder to keep it in for another time."
    folder = Path(os.environ.get("TUMORSEG_COLAB") or tmp_path_factory.mktemp("colab") / "env")
    python, first = folder / "bin/python", folder / "packages.json"
    if not first.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *COLAB], check=True)
        first.write_text(json.dumps(packages(python)))
    wanted, found = json.loads(first.read_text()), packages(python)
    added = sorted(found.keys() - wanted.keys()) # by an earlier time
    changed = [f"{name}=={wanted[name]}" for name in wanted if found.get(name) != wanted[name]]
    if added: subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *added], check=True)
    if changed: subprocess.run([python, "-m", "pip", "install", "-q", *changed], check=True)
    return python


def asked_for():
    "What first cells of the notebooks install in Colab beside the library."
    notebooks = [json.loads((ROOT / f"nbs/{name}.ipynb").read_text(encoding="utf-8")) for name in NOTEBOOKS]
    lines = [line for notebook in notebooks for cell in notebook["cells"] for line in cell["source"]
             if line.startswith("! [ -e /content ] && pip install")]
    assert len(lines) >= 4
    words = {word for line in lines for word in line.split("pip install")[1].split()}
    return sorted(word for word in words if not word.startswith(("-", "git+")))


@pytest.fixture(scope="module")
def installed(colab, tmp_path_factory):
    "Before and after the installation of our wheel, and of what the notebooks ask for."
    wheels, before = tmp_path_factory.mktemp("wheel"), packages(colab)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT], check=True)
    subprocess.run([colab, "-m", "pip", "install", "-q", *wheels.glob("*.whl"), *asked_for()], check=True)
    return before, packages(colab)


def test_installing_replaces_nothing_of_colab(installed):
    before, after = installed
    assert before["ipywidgets"] == "7.7.1" and "tumorseg" not in before and "tumorseg" in after
    assert {name: after.get(name) for name in before} == before
    assert not {"jupyterlab", "nbdev", "jupyter"} & (after.keys() - before.keys())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(name, colab, installed, tmp_path):
    "As its visitors run it: all cells, in a folder far from the checkout, so that the package is the one in the wheel."
    (tmp_path / "visitor.ipynb").write_bytes((ROOT / f"nbs/{name}.ipynb").read_bytes())
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"PATH": f"{colab.parent}{os.pathsep}{os.environ['PATH']}",
            "JUPYTER_DATA_DIR": str(tmp_path / "data"), "IPYTHONDIR": str(tmp_path / "ipython")}
    command = [colab, "-m", "nbconvert", "--to", "notebook", "--execute", "--ExecutePreprocessor.timeout=600",
               "visitor.ipynb", "--output", "done"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / "done.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    assert code and all(cell["execution_count"] for cell in code)
