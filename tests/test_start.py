"""00_start as visitors run it: on real slices, with a kernel that ends half-way, and in JupyterLab with an upload."""
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from test_browser import browser, lab, page, run_all
from test_browser import pytestmark as needs_browser

__all__ = ["browser", "lab", "page"] # fixtures

ROOT = Path(__file__).resolve().parent.parent
KAGGLE = ROOT.parent / "shared/data/kaggle"
SMALL = '"demo", "contour", 96, ts.Config(epochs=15, width=8, depth=3, batch=8)' # what it does without a GPU


def start_notebook(settings):
    "The notebook with other settings for a machine without a GPU."
    notebook = nbformat.read(ROOT / "nbs/00_start.ipynb", 4)
    found = [cell for cell in notebook.cells if SMALL in cell.source]
    assert len(found) == 1
    found[0].source = found[0].source.replace(SMALL, settings)
    found[0].source = found[0].source.replace("if not GPU:", "if True:")
    for cell in notebook.cells: cell.source = cell.source.replace("patients=40, size=192", "patients=20, size=96")
    return notebook


def executed(notebook, folder):
    "What each cell printed, from a kernel of its own."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute(env=env)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def copy_some(source, to, counts):
    "A copy of the Kaggle set with some of its slices."
    for split, count in counts.items():
        coco = json.loads((source / split / "_annotations.coco.json").read_text())
        step = len(coco["images"]) // count
        coco["images"] = coco["images"][::step][:count]
        kept = {image["id"] for image in coco["images"]}
        coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] in kept]
        (to / split).mkdir(parents=True)
        (to / split / "_annotations.coco.json").write_text(json.dumps(coco))
        for image in coco["images"]: shutil.copy(source / split / image["file_name"], to / split)


@pytest.mark.skipif(not KAGGLE.exists(), reason="the Kaggle set is not here")
def test_a_second_kernel_resumes_on_real_slices(tmp_path):
    copy_some(KAGGLE, tmp_path / "some", dict(train=48, valid=12, test=12))
    settings = f'"{tmp_path / "some"}", "box", 64, ts.Config(epochs=3, width=4, depth=2, batch=8, seed=1)'
    first = start_notebook(settings)
    waiting = next(number for number, cell in enumerate(first.cells) if "panel.wait()" in cell.source)
    first.cells[waiting].source = """import time
while len(panel.run.history) < 1: time.sleep(.1)
panel.stop()
panel.wait()
print(f"stopped after {len(panel.run.history)} epochs")"""
    del first.cells[waiting + 1:]
    stopped = executed(first, tmp_path)
    epochs = int(re.search(r"stopped after (\d) epochs", stopped)[1])
    assert 1 <= epochs < 3, stopped

    said = executed(start_notebook(settings), tmp_path)
    run = tmp_path / "runs/some-box-64"
    assert "some-box-64: has begun, and is continued" in said
    assert re.search(r"3 epochs in \d+\.\d minutes, .*float32", said)
    assert "12 slices, box labels" in said and "Without learning" in said
    assert len(pd.read_csv(run / "history.csv")) == 3
    assert {"model.safetensors", "metrics.json", "slices.csv", "report.html"} <= {file.name for file in run.iterdir()}
    assert len(list((tmp_path / "runs/predictions").glob("*_mask.png"))) == 1


@needs_browser
def test_in_jupyterlab_it_ends_with_the_visitors_own_picture_segmented(lab, page, tmp_path):
    address, folder = lab
    small = start_notebook('"demo", "contour", 64, ts.Config(epochs=2, width=4, depth=2, batch=8, seed=1)')
    nbformat.write(small, folder / "00_start.ipynb")
    run_all(page, address, "00_start")
    run = folder / "runs/demo-contour-64"
    assert len(pd.read_csv(run / "history.csv")) == 2 and (run / "report.html").exists()
    assert page.locator(".widget-html", has_text=re.compile(r"1 of \d+: ")).count() >= 1 # browse shows this run

    scan = folder / "runs/demo/test/demo-017_2.jpg"
    with page.expect_file_chooser() as chooser: page.locator("button", has_text="Choose an image").click()
    chooser.value.set_files(scan)
    page.locator(".widget-html", has_text=re.compile("demo-017_2.*(is marked)")).first.wait_for()
    link = page.get_by_role("link", name="Download the mask")
    assert link.get_attribute("download") == "demo-017_2_mask.png"
