"""The book and its site: each notebook has one place and says it, the API is docments, no page asks elsewhere."""
import ast
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import api  # noqa: E402
import book  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOTEBOOKS = {path.relative_to(book.NBS).as_posix() for path in book.NBS.rglob("*.ipynb")} - {book.INDEX.name}
ORDER = book.read_order()
MINUTES = "takes a minute or two: WHOLE_SITE=1 pytest tests/test_docs.py -k site"
whole_site = pytest.mark.skipif("WHOLE_SITE" not in os.environ or find_spec("zensical") is None, reason=MINUTES)


# ---- the book

def test_the_book_has_every_notebook_once():
    listed = [path for path, _ in ORDER]
    assert len(listed) == len(set(listed)), "listed twice"
    assert NOTEBOOKS - set(listed) == set(), "a line in nbs/index.ipynb is wanted"
    assert set(listed) - NOTEBOOKS == set(), "listed, and not there"


def test_the_book_has_five_parts_and_reference():
    headings = list(dict.fromkeys(heading.split(":")[0] for _, heading in ORDER))
    assert headings == ["Start here", "Part I", "Part II", "Part III", "Part IV", "Part V", book.REFERENCE]


def test_each_entry_of_the_book_is_one_sentence():
    entries = re.findall(r"^(?:\d+\.|-) \[.*\.ipynb\)(.*)$", "\n".join(book.markdown_cells(book.INDEX)), re.MULTILINE)
    assert len(entries) == len(ORDER)
    assert not [text for text in entries if not re.fullmatch(r": \S.{10,150}[.?]", text)]


def test_the_glossary_is_short_and_leads_to_notebooks():
    text = "\n".join(book.markdown_cells(book.INDEX)).split("## Glossary")[1]
    terms = re.findall(r"^- \*\*(.+?)\*\*: (.+) \[\w+\]\((.+\.ipynb)\)$", text, re.MULTILINE)
    assert len(terms) == text.count("\n- ") > 35
    assert not [term for term, words, _ in terms if len(words) > 200]
    assert {path for _, _, path in terms} <= NOTEBOOKS


def test_from_next_to_next_one_reads_the_whole_book():
    lines = book.place_lines(ORDER)
    chapters = [path for path, heading in ORDER if heading.startswith("Part ")]
    path, read = chapters[0], []
    while path:
        read.append(path)
        following = re.search(r"Next: \[\w+\]\((.+?)\)", lines[path])
        path = following and Path(os.path.normpath(Path(path).parent / following[1])).as_posix()
    assert read == chapters and len(read) > 25
    assert "Part I, 1 of " in lines[chapters[0]] and "Before" not in lines[chapters[0]]


def test_writing_a_line_changes_that_line_alone(tmp_path):
    path = tmp_path / "unet.ipynb"
    source = ["# unet\n", "\n", "> One line.\n", "\n", "*Why* ü."]
    notebook = dict(cells=[dict(cell_type="markdown", id="a", metadata={}, source=source)], metadata={}, nbformat=4)
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")
    for line in ("*[The book](index.ipynb), Part I, 1 of 2.*", "*[The book](index.ipynb), Part V, 2 of 2.*"):
        path.write_text(book.update(path, line), encoding="utf-8")
        assert book.markdown_cells(path) == [f"# unet\n\n> One line.\n\n{line}\n\n*Why* ü."]
        assert book.update(path, line) is None
    assert book.update(path, None) == text


def test_every_notebook_says_where_it_stands():
    done = subprocess.run([sys.executable, ROOT / "docs/book.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


# ---- the API

@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {Path(name).stem: (folder / name).read_text(encoding="utf-8") for name in api.write_api(folder)}


def test_the_api_has_every_public_function_and_class(pages):
    for path in (ROOT / "tumorseg").rglob("*.py"):
        if path.name.startswith("_"): continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = next(ast.literal_eval(node.value) for node in tree.body if ast.unparse(node).startswith("__all__ = "))
        defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        text = pages[path.relative_to(ROOT / "tumorseg").parts[0].removesuffix(".py")]
        assert not [name for name in names if name in defined and f"{{ #{name} }}" not in text], path


def test_the_front_door_leads_to_the_api(pages):
    links = re.findall(r"\[`ts\.(\w+)`\]\((\w+)\.md#(\w+)\) \| \S", pages["index"])
    assert len(links) > 20 and all(name == place and f"{{ #{name} }}" in pages[wing] for name, wing, place in links)


def test_a_parameter_has_its_type_and_its_meaning(pages):
    text = pages["data"].split("{ #open_data }")[1].split("\n### ")[0]
    assert "open_data(\n    data,\n    size=128,\n    *,\n" in text
    assert "| size | <code>int</code> | side of the square slices, pixels |" in text
    assert "| *returns* | <code>Slices</code> |" in text


def test_words_with_an_underscore_are_no_markdown():
    assert api.prose("`a_b` is *a_b* of <c>|") == r"`a_b` is \*a\_b\* of \<c\>\|"


# ---- the site

def test_the_site_leads_to_the_repository():
    settings = ConfigParser(delimiters="=")
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    address = "https://github.com/{user}/{repo}".format(**settings["DEFAULT"])
    for path in (ROOT / "docs/zensical.toml", book.INDEX): assert address in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def build():
    pytest.importorskip("nbconvert")
    import build
    return build


def test_links_that_lead_nowhere_and_loads_from_elsewhere_are_found(build, tmp_path):
    one, other, style = tmp_path / "a.html", tmp_path / "b.html", tmp_path / "style.css"
    one.write_text('<a id="here" href="b.html#there">b</a> <a href="https://example.org">fine</a>')
    other.write_text('<p id="there"></p> <a href="a.html#here">a</a> <img src="data:image/png;base64,">')
    style.write_text("p { background: url(picture.png) }")
    assert build.problems(tmp_path) == []
    one.write_text('<a href="c.html">c</a> <a href="b.html#nowhere">b</a> <script src="//x.org/a.js"></script>')
    style.write_text("@font-face { src: url('https://fonts.example.org/a.woff2') }")
    assert build.problems(tmp_path) == ["a.html: loads //x.org/a.js",
                                        "a.html: c.html is not there",
                                        "a.html: b.html#nowhere has no such place",
                                        "b.html: a.html#here has no such place",
                                        "style.css: loads https://fonts.example.org/a.woff2"]


def test_links_of_a_notebook_lead_to_pages(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PAGES", tmp_path)
    page = tmp_path / "data/02_coco.md"
    colab = "https://colab.research.google.com/github/some/body/blob/main/nbs/00_start.ipynb"
    badge = f'<a href="{colab}"><img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open"></a>'
    text = f"{badge} [a](10_sources.ipynb#One-call) [b]({colab}) [c](https://doi.org/x) `$(which a) $b`"
    assert build.for_the_site(text, page) == (f'<a href="{colab}">Open</a> [a](10_sources.md#one-call) '
                                              "[b](../00_start.md) [c](https://doi.org/x) `$(which a) $b`")
    formula = build.for_the_site(r"The logit $\frac{a}{b}$.", page)
    picture = re.fullmatch(r'The logit <img class="formula" src="\.\./(.+\.svg)" alt="(.+)" style=".+">\.', formula)
    assert picture[2] == r"\frac{a}{b}"
    assert "<svg" in (tmp_path / picture[1]).read_text()


@whole_site
def test_the_whole_site_is_built_and_asks_for_nothing_elsewhere(build):
    subprocess.run([sys.executable, ROOT / "docs/build.py"], check=True)
    assert len(list(build.SITE.rglob("*.html"))) >= len(NOTEBOOKS) + len(list(api.PACKAGE.glob("*/__init__.py")))
    assert build.problems(build.SITE) == []
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None: pytest.skip("no Chromium here: apt-get install chromium")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=build.SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as browsers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, asked = f"http://127.0.0.1:{server.server_address[1]}/", []
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 400, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index", "model/00_unet", "api/data"):
            page.goto(f"{address}{name}.html", wait_until="networkidle")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than a phone"
        browser.close()
        server.shutdown()
    assert len(asked) > 10 and not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
