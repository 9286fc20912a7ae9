"""The documentation site: the notebooks in the order of the book, a page of the API for each wing. `make docs` runs it.

It needs nbconvert, matplotlib and zensical; notebooks and modules are read, not run, so not the library itself.
"""
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from api import write_api
from book import NBS, ROOT, read_order
from matplotlib import rc_context
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from nbconvert import MarkdownExporter

PAGES = ROOT / "build/docs/pages" # what zensical reads
SITE = ROOT / "_site"
OURS = r"https://(?:colab\.research\.google\.com/github|raw\.githubusercontent\.com)/[\w-]+/[\w-]+/(?:blob/)?main/"


# ---- notebooks

def formula(text: str, page: Path) -> str:
    "A formula as a picture beside the text: browsers would have to load a library to draw it."
    path = PAGES / f"formulas/{sha256(text.encode()).hexdigest()[:12]}.svg"
    path.parent.mkdir(exist_ok=True)
    with rc_context({"savefig.facecolor": "none"}):
        depth = math_to_image(f"${text}$", path, prop=FontProperties(size=12, math_fontfamily="cm"), format="svg")
    source = os.path.relpath(path, page.parent)
    return f'<img class="formula" src="{source}" alt="{html.escape(text)}" style="vertical-align: -{depth:.1f}pt">'


def for_the_site(text: str, page: Path) -> str:
    "Markdown of a notebook with links to pages, formulas and pictures that the site has itself."
    top = os.path.relpath(PAGES, page.parent)
    text = re.sub(r'<img src="https://colab[^>]*alt="([^"]*)"[^>]*>', r"\1", text) # the badge
    text = re.sub(rf"\]\({OURS}(?:nbs/)?(?=[^)]*\.(?:ipynb|png))", f"]({top}/", text)
    text = re.sub(r"\]\((?!http|mailto:)([^)\s]+)\.ipynb(#[^)\s]*)?\)",
                  lambda link: f"]({link[1]}.md{(link[2] or '').lower()})", text)
    return re.sub(r"(`[^`]*`)|\$([^$\n]+)\$", lambda found: found[1] or formula(found[2], page), text)


def write_notebook(path: str, exporter: MarkdownExporter) -> None:
    "A notebook as a page, its pictures as files beside it. Cells that nbdev hides are left out, and its directives."
    page = (PAGES / path).with_suffix(".md")
    notebook = nbformat.read(NBS / path, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = for_the_site(cell.source, page)
        elif re.search(r"^#\|\s*hide\s*$", cell.source, re.MULTILINE):
            cell.source = ""
        else:
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    resources = {"unique_key": page.stem, "output_files_dir": f"{page.stem}_files"}
    text, resources = exporter.from_notebook_node(notebook, resources)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text.replace("![png](", "![Output](").replace("![jpeg](", "![Output]("), encoding="utf-8")
    for name, content in resources["outputs"].items():
        (page.parent / name).parent.mkdir(exist_ok=True)
        (page.parent / name).write_bytes(content)


# ---- the site

def navigation(api: list[str]) -> str:
    "The order of the book, then the API, as zensical wants it."
    def entries(pages: list[str]) -> str:
        named = ((re.sub(r"^\d+_", "", Path(page).stem).replace("_", " "), page) for page in pages)
        return "[" + ", ".join(f"{{{json.dumps(name)} = {json.dumps(page)}}}" for name, page in named) + "]"
    sections = defaultdict(list)
    for path, heading in read_order(): sections[heading].append(path.replace(".ipynb", ".md"))
    parts = [f"{{{json.dumps(heading)} = {entries(pages)}}}" for heading, pages in sections.items()]
    return f'nav = [{{"The book" = ["index.md", {", ".join(parts)}]}}, {{"API" = {entries(api)}}}]'


class Page(HTMLParser):
    "What an HTML page links to, what it loads by itself, and what in it can be linked to."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found.get("id"), found.get("name")}
        if tag in ("a", "link") and found.get("href"): (self.links if tag == "a" else self.loads).append(found["href"])
        if found.get("src"): self.loads.append(found["src"])


def problems(site: Path) -> list[str]:
    "Links and pictures of a built site that lead nowhere, and whatever a browser would fetch from elsewhere."
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: loads {url}" for url in page.loads if re.match("(https?:)?//", url)]
        for url in page.links + page.loads:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc: continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir(): target /= "index.html"
            if not target.is_file(): found.append(f"{name}: {url} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name}: {url} has no such place")
    for path in site.rglob("*.css"):
        styles = re.findall(r"(?:url\(|@import )[\"']?(https?:[^\"')]+)", path.read_text(encoding="utf-8"))
        found += [f"{path.name}: loads {url}" for url in styles]
    return found


def main() -> None:
    shutil.rmtree(PAGES.parent, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    exporter = MarkdownExporter()
    for path in ["index.ipynb", *(place.path for place in read_order())]: write_notebook(path, exporter)
    shutil.copytree(ROOT / "Images", PAGES / "Images")
    shutil.copy(ROOT / "docs/style.css", PAGES)
    settings = (ROOT / "docs/zensical.toml").read_text(encoding="utf-8")
    settings = re.sub(r"^nav = .*", lambda _: navigation(write_api(PAGES)), settings, flags=re.MULTILINE)
    (PAGES.parent / "zensical.toml").write_text(settings, encoding="utf-8")
    zensical = Path(sys.executable).parent / "zensical"
    subprocess.run([zensical, "build", "--strict"], cwd=PAGES.parent, check=True)
    shutil.move(PAGES.parent / "site", SITE)
    if found := problems(SITE): sys.exit("\n".join([*found, f"{len(found)} problems in the pages"]))
    print(f"{SITE.relative_to(ROOT)}/index.html: {sum(1 for _ in SITE.rglob('*.html'))} pages, links checked")


if __name__ == "__main__": main()
