"""The documentation site: the notebooks in the order of the book, and a page of the API for each wing. `make docs` runs it.

The modules are read, not imported, so neither torch nor anything else of the library is needed.
"""
import ast
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections import defaultdict
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from book import NBS, REFERENCE, ROOT, read_order
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from nbconvert import MarkdownExporter

PAGES = ROOT / "build/docs/pages" # what zensical reads
SITE = ROOT / "_site"
OURS = r"https://(?:colab\.research\.google\.com/github|raw\.githubusercontent\.com|github\.com)/tumorseg/tumorseg/(?:blob/)?main/"


# ---- notebooks

def formula(text: str, page: Path) -> str:
    "A formula as a picture beside the text: browsers would have to load a library to draw it."
    path = PAGES / f"formulas/{sha256(text.encode()).hexdigest()[:12]}.svg"
    path.parent.mkdir(exist_ok=True)
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


# ---- the API, from docments: the comment behind a parameter says what it is

def prose(text: str) -> str:
    "Text of a docstring or comment, in which nothing but `code` is markdown."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>|\\\[\]])", r"\\\1", part) for part in parts)


def table(head: str, rows: list[tuple[str, ast.AST, ast.expr | None]], comments: dict[int, str]) -> str:
    "Name, type and meaning; the comment stands on the line on which a parameter begins or ends."
    lines = [f"| {head} | type | meaning |", "|---|---|---|"]
    for name, node, kind in rows:
        meaning = prose(comments.get(node.lineno) or comments.get(node.end_lineno, ""))
        kind = f"<code>{html.escape(ast.unparse(kind)).replace('|', '&#124;')}</code>" if kind else ""
        lines.append(f"| {name} | {kind} | {meaning} |")
    return "\n".join(lines) if rows else ""


def fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [item for item in node.body if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_")]


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    "The public ones, and the call."
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    return [item for item in functions if not item.name.startswith("_") or item.name == "__call__"]


def signature(name: str, args: list[ast.arg | ast.AnnAssign], defaults: list[ast.expr | None], star: int | None) -> str:
    "The call without types, which the table has; one parameter on each line where there are many."
    names = [arg.arg if isinstance(arg, ast.arg) else arg.target.id for arg in args]
    parts = [name + (f"={ast.unparse(default)}" if default else "") for name, default in zip(names, defaults)]
    if star is not None: parts.insert(star, "*")
    line = f"{name}({', '.join(parts)})"
    if len(line) > 90: line = f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"
    return f"```python\n{line}\n```"


def described(name: str, node: ast.FunctionDef | ast.ClassDef, comments: dict[int, str]) -> str:
    "A function or a class: its call, docstring, and parameters; then its methods."
    level = "####" if "." in name else "###"
    heading = f"{level} {prose(name)} {{ #{name} }}"
    docstring = prose(ast.get_docstring(node) or "")
    function, parameters = node, []
    if isinstance(node, ast.ClassDef):
        function = next((item for item in node.body if getattr(item, "name", "") == "__init__"), None)
    if function is None:
        call = signature(name, fields(node), [field.value for field in fields(node)], None)
        parameters = [(field.target.id, field, field.annotation) for field in fields(node)]
    else:
        args = function.args
        plain = [*args.posonlyargs, *args.args]
        defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults + args.kw_defaults
        every = [*plain, *args.kwonlyargs]
        first = 1 if every and every[0].arg in ("self", "cls") else 0
        star = len(plain) - first if args.kwonlyargs else None
        called = name.removesuffix(".__call__")
        call = signature(called, every[first:], defaults[first:], star)
        parameters = [(arg.arg, arg, arg.annotation) for arg in every[first:]]
        if function.returns is not None: parameters.append(("*returns*", function.returns, function.returns))
    if any("property" in ast.unparse(decorator) for decorator in node.decorator_list): call = ""
    parts = [heading, call, docstring, table("parameter", parameters, comments)]
    if isinstance(node, ast.ClassDef): parts += [described(f"{name}.{item.name}", item, comments) for item in methods(node)]
    return "\n\n".join(filter(None, parts))


def api_module(path: Path) -> tuple[str, list[tuple[str, str]]]:
    "The part of a page that is about one module, and its public names, each with the first line of its docstring."
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    defined = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    public = next(ast.literal_eval(node.value) for node in tree.body if ast.unparse(node).startswith("__all__"))
    notebook = re.search(r"File to edit: (?:\.\./)*nbs/(.+)\.ipynb", source)[1]
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    parts = [f"## {module}", prose(ast.get_docstring(tree)), f"Explained in [{Path(notebook).name}](../{notebook}.md)."]
    parts += [described(name, defined[name], comments) for name in public if name in defined]
    return "\n\n".join(parts), [name for name in public if name in defined]


def write_api() -> list[str]:
    "A page for each wing, and one for the front door. Gives the pages in the order of the house."
    stub = ast.parse((ROOT / "tumorseg/__init__.pyi").read_text(encoding="utf-8"))
    (PAGES / "api").mkdir(parents=True)
    wings = defaultdict(list)
    for path in sorted((ROOT / "tumorseg").rglob("*.py")):
        if not path.name.startswith("_"): wings[path.relative_to(ROOT / "tumorseg").parts[0].removesuffix(".py")].append(path)
    for wing, paths in wings.items():
        text = "\n\n".join([f"# {wing}", *(api_module(path)[0] for path in paths)])
        (PAGES / f"api/{wing}.md").write_text(text, encoding="utf-8")
    front = ["# The front door", "`import tumorseg as ts` offers these names; each is imported when it is first used.", ""]
    for node in stub.body:
        wing = node.module.split(".")[0]
        front += [f"- [`ts.{name.name}`]({wing}.md#{name.name})" for name in node.names]
    (PAGES / "api/index.md").write_text("\n".join(front), encoding="utf-8")
    return ["api/index.md", *(f"api/{wing}.md" for wing in wings)]


# ---- the site

def navigation(api: list[str]) -> str:
    "The order of the book, then the API, as zensical wants it."
    def entries(pages: list[str]) -> str:
        named = ((re.sub(r"^\d+_", "", Path(page).stem).replace("_", " "), page) for page in pages)
        return "[" + ", ".join(f"{{{json.dumps(name)} = {json.dumps(page)}}}" for name, page in named) + "]"
    sections = defaultdict(list)
    for path, heading in read_order(): sections[heading].append(path.replace(".ipynb", ".md"))
    book = ", ".join(['"index.md"', *(f"{{{json.dumps(heading)} = {entries(pages)}}}" for heading, pages in sections.items())])
    return f'nav = [{{"The book" = [{book}]}}, {{"API" = {entries(api)}}}]'


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
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
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
    settings = re.sub(r"^nav = .*", lambda _: navigation(write_api()), settings, flags=re.MULTILINE)
    (PAGES.parent / "zensical.toml").write_text(settings, encoding="utf-8")
    zensical = Path(sys.executable).parent / "zensical"
    subprocess.run([zensical, "build", "--strict"], cwd=PAGES.parent, check=True)
    shutil.move(PAGES.parent / "site", SITE)
    if found := problems(SITE): sys.exit("\n".join([*found, f"{len(found)} problems in the pages"]))
    print(f"{SITE.relative_to(ROOT)}/index.html: {sum(1 for _ in SITE.rglob('*.html'))} pages, links checked")


if __name__ == "__main__": main()
