"""Notebooks and the web page in a browser, as visitors use them: JupyterLab, Voila. Skipped where one is missing."""
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

import tumorseg as ts

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
for name in ("playwright", "jupyterlab", "voila"):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, tmp_path):
    "A window; what it showed last is kept in the test's temporary folder."
    page = browser.new_page(viewport={"width": 1300, "height": 1700})
    page.set_default_timeout(30_000)
    yield page
    page.screenshot(path=tmp_path / "last.png")
    page.close()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def served(command, home, url):
    "A server of our own, with nobody's settings, until the block ends."
    home.mkdir(parents=True)
    (home / "tmp").mkdir()
    folders = dict(HOME=".", TMPDIR="tmp", JUPYTERLAB_SETTINGS_DIR="settings", JUPYTERLAB_WORKSPACES_DIR="workspaces",
                   JUPYTER_CONFIG_DIR="config", JUPYTER_DATA_DIR="data", JUPYTER_RUNTIME_DIR="runtime",
                   IPYTHONDIR="ipython")
    env = {**os.environ, **{name: str(home / folder) for name, folder in folders.items()}, "PYTHONPATH": str(ROOT),
           "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    settings = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
                "notebook-extension/tracker": {"windowingMode": "none"}} # every cell is in the page, seen or not
    for extension, content in settings.items():
        file = home / f"settings/@jupyterlab/{extension}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    with open(home / "log", "wb") as log:
        program = Path(sys.executable).parent / command[0]
        server = subprocess.Popen([program, *command[1:]], env=env, stdout=log, stderr=log)
        try:
            for _ in range(240):
                if server.poll() is not None: break
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                except urllib.error.HTTPError: break # an answer too
                except OSError: time.sleep(.25)
            else: raise AssertionError(f"{command[0]} does not answer")
            assert server.poll() is None, (home / "log").read_text()
            yield
        finally:
            server.terminate()
            try: server.wait(10)
            except subprocess.TimeoutExpired: server.kill()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on a folder with copies of our notebooks, and one that watches a training."
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    for name in ("widgets/02_explore", "widgets/03_preview", "widgets/04_browse"):
        notebook = json.loads((ROOT / f"nbs/{name}.ipynb").read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code": cell["outputs"], cell["execution_count"] = [], None
        (folder / f"{Path(name).name}.ipynb").write_text(json.dumps(notebook))
    code = ["import tumorseg as ts\n"
            "slices = ts.open_data(ts.write_demo('demo', patients=12, size=64), size=64, cache='cache')",
            "panel = ts.watch(slices, 'run', ts.Config(epochs=5000, width=4, depth=2, batch=8, patience=5000))\npanel",
            "'the kernel is free'"]
    cells = [dict(cell_type="code", id=f"c{number}", source=source, metadata={}, outputs=[], execution_count=None)
             for number, source in enumerate(code)]
    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    (folder / "watch.ipynb").write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    command = ["jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               "--allow-root", f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=", "--expose-app-in-browser"]
    with served(command, folder / "home", f"http://127.0.0.1:{port}/api"): yield f"http://127.0.0.1:{port}", folder


# What the menu item "Run All Cells" does, once there is a kernel that answers; before, nothing
RUN = """async () => {
    const app = window.jupyterapp, kernel = app?.shell.currentWidget?.sessionContext?.session?.kernel
    if (kernel?.connectionStatus != 'connected' || kernel.status != 'idle') return false
    app.commands.execute('notebook:run-all-cells')
    return true }"""
# JupyterLab may ask for a kernel at any time: the one that it proposes
ANSWER = "() => { document.querySelector('.jp-Dialog button.jp-mod-accept')?.click() }"
PROMPTS = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(prompt => prompt.innerText)"


def run_all(page, address, name):
    "Open a notebook, run all of its cells, and wait until the last one is done."
    page.goto(f"{address}/lab/tree/{name}.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    until(page, lambda: page.evaluate(ANSWER) or page.evaluate(RUN), 120)

    def done():
        page.evaluate(ANSWER)
        errors = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
        assert not errors, errors[0]
        prompts = page.evaluate(PROMPTS)
        return not any("[*]" in text for text in prompts) and re.search(r"\[\d+\]", prompts[-1])
    until(page, done, 240)
    page.wait_for_timeout(1000) # what the last cells changed in the widgets arrives
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr'] >> text=Traceback").count() == 0


def named(page, kind, name):
    "The control whose visible name this is."
    label = page.locator(".widget-label", has_text=re.compile(f"^{re.escape(name)}$"))
    return page.locator(f".widget-{kind}", has=label).first


def shown(page, nth=0):
    "Where the n-th picture of the first panel comes from: it changes with every redraw."
    return page.locator("img.widget-image").nth(nth).get_attribute("src")


def until(page, condition, seconds=30):
    "Wait for a thing that takes a moment."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition(): return
        page.wait_for_timeout(100)
    raise AssertionError("waited in vain")


def changes(page, look, act):
    "Do something, and wait until what is looked at is another."
    before = look()
    act()
    until(page, lambda: look() != before)


def drag(page, control, share, handle=0):
    "Take a slider's handle to a share of its length, with the mouse; again, where the kernel was still moving it."
    control.scroll_into_view_if_needed()
    line, knob = control.locator(".noUi-base"), control.locator(".noUi-handle").nth(handle)

    def middle(box): return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for _ in range(5):
        box = line.bounding_box()
        to = box["x"] + box["width"] * share
        page.mouse.move(*middle(knob.bounding_box()))
        page.mouse.down()
        page.mouse.move(to, middle(box)[1], steps=8)
        page.mouse.up()
        page.wait_for_timeout(500)
        if abs(middle(knob.bounding_box())[0] - to) < .1 * box["width"]: return
    raise AssertionError("the handle does not stay where it was dragged to")


def test_browse_follows_the_threshold_and_the_slice_and_keeps_a_tag(lab, page, tmp_path):
    address, folder = lab
    run_all(page, address, "04_browse")
    threshold, slice_ = named(page, "slider", "Threshold"), named(page, "slider", "Slice")

    def dice(): return page.locator(".widget-html", has_text="Dice of this slice").first.inner_text()
    def caption(): return page.locator(".widget-html", has_text=re.compile(r"\d+ of \d+: ")).first.inner_text()
    # from the worst slice, where nothing may be found
    changes(page, lambda: (shown(page), caption()), lambda: drag(page, slice_, .7))
    before = dice()
    changes(page, lambda: shown(page), lambda: drag(page, threshold, .9))
    until(page, lambda: dice() != before)
    assert re.search(r"Dice of this slice [01]\.\d+, mean of all \d+ slices [01]\.\d+", dice())
    named(page, "dropdown", "Tag").locator("select").select_option(label="interesting")

    def tags(): return [file.read_text() for file in (folder / "home/tmp").glob("*/longer/tags.csv")]
    until(page, lambda: any("interesting" in text for text in tags()))
    page.screenshot(path=tmp_path / "browse.png")
    both = page.locator(".widget-html", has_text="they differ on").first
    both.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "browse_two.png")


def test_preview_and_explore_redraw_and_give_the_code(lab, page, tmp_path):
    address, _ = lab
    run_all(page, address, "03_preview")

    def code(): return named(page, "text", "Code to copy").locator("input").input_value()
    changes(page, lambda: shown(page), lambda: drag(page, named(page, "slider", "Share of slices turned"), .4))
    until(page, lambda: .2 <= float(re.search(r"rotation_p=([\d.]+)", code())[1]) <= .6)
    changes(page, lambda: shown(page), lambda: drag(page, named(page, "slider", "Angle, degrees"), .95, handle=1))
    until(page, lambda: 160 <= int(re.search(r"degrees=\(\d+, (\d+)\)", code())[1]) <= 180)
    page.screenshot(path=tmp_path / "preview.png")
    run_all(page, address, "02_explore")

    def line(): return page.locator(".widget-html", has_text=re.compile("page 1 of")).first.inner_text()
    def choose(name, option): named(page, "dropdown", name).locator("select").select_option(label=option)
    changes(page, line, lambda: choose("Order", "most alike side by side"))
    assert "near-duplicates" in line()
    changes(page, lambda: shown(page), lambda: choose("Outline", "none"))
    named(page, "dropdown", "Order").scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "explore.png")


def test_the_stop_button_ends_a_training_while_it_runs(lab, page, tmp_path):
    address, folder = lab
    run_all(page, address, "watch") # the last cell runs although the training goes on
    changes(page, lambda: shown(page, 1), lambda: None) # an epoch later the slices look otherwise

    def message(text): return page.locator(".widget-html", has_text=re.compile(text)).first
    message(r"Epoch \d+ of 5000, best validation Dice .* left").wait_for()
    page.screenshot(path=tmp_path / "watch.png")
    page.locator("button", has_text="Stop training").click()
    message("Stopped after").wait_for()
    epochs = len(pd.read_csv(folder / "run/history.csv"))
    assert f"Stopped after {epochs} of 5000" in message("Stopped after").inner_text() and 0 < epochs < 5000
    assert (folder / "run/last/training.safetensors").exists()
    assert page.locator("button", has_text="Stop training").is_disabled()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A folder like ours after `make demo`: the page in nbs/, a run in demo/run."
    folder = tmp_path_factory.mktemp("project")
    (folder / "nbs").mkdir()
    shutil.copy(ROOT / "nbs/app.ipynb", folder / "nbs")
    slices = ts.open_data(ts.write_demo(folder / "demo/data", patients=20, size=96), size=64, cache=folder / "cache")
    ts.train(slices, folder / "demo/run", ts.Config(epochs=5, width=8, depth=3, batch=8), on_epoch=lambda *_: None)
    return folder


def test_the_page_shows_the_mask_of_an_upload_and_a_line_for_what_is_no_image(project, page, tmp_path):
    port = free_port()
    command = ["voila", str(project / "nbs/app.ipynb"), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    with served(command, tmp_path / "home", f"http://127.0.0.1:{port}/voila/static/"):
        page.goto(f"http://127.0.0.1:{port}/")
        button = page.locator("button", has_text="Choose an image")
        button.wait_for()
        scan = sorted((project / "demo/data/test").glob("*.jpg"))[0]
        letter = tmp_path / "letter.png"
        letter.write_text("Dear doctor,")
        for file, text in ((letter, "not an image"), (scan, "of the image is marked|nothing is marked")):
            with page.expect_file_chooser() as chooser: button.click()
            chooser.value.set_files(file)
            page.locator(".widget-html", has_text=re.compile(f"{re.escape(file.name)}.*({text})")).first.wait_for()
            page.screenshot(path=tmp_path / f"page_{file.stem}.png")
            assert page.locator("img.widget-image:visible").count() == (file == scan)
        link = page.get_by_role("link", name="Download the mask")
        assert link.get_attribute("download") == f"{scan.stem}_mask.png"
        mask = base64.b64decode(link.get_attribute("href").split("base64,")[1])
        assert mask.startswith(b"\x89PNG")
        assert "Traceback" not in page.content()


def test_a_first_visitor_without_a_model_is_told_how_to_make_one(page, tmp_path):
    (tmp_path / "nbs").mkdir()
    shutil.copy(ROOT / "nbs/app.ipynb", tmp_path / "nbs")
    port = free_port()
    command = ["voila", str(tmp_path / "nbs/app.ipynb"), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    with served(command, tmp_path / "home", f"http://127.0.0.1:{port}/voila/static/"):
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator(".widget-html", has_text="make demo").wait_for()
