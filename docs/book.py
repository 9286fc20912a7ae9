"""The order of the notebooks, which stands in nbs/index.ipynb alone, and the line in each that says where it is.

    python docs/book.py --write    puts the line into each notebook, below its subtitle
    python docs/book.py --check    exits 1 where a line is missing or not up to date
"""
import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
INDEX = NBS / "index.ipynb"
REFERENCE = "Reference"

ENTRY = re.compile(r"^(?:\d+\.|-) \[[^\]]+\]\(([^)#\s]+\.ipynb)\)", re.MULTILINE)
LINE = re.compile(r"\n\n\*\[The book\]\(.*\*(?=\n|$)") # ours, with the empty line before it
SUBTITLE = re.compile(r"^> .*$", re.MULTILINE)


class Place(NamedTuple):
    "Where a notebook stands."
    path: str # below nbs: "model/00_unet.ipynb"
    heading: str # of its section in the index: "Part II: The network"


def markdown_cells(path: Path) -> list[str]:
    "The text of each markdown cell."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def read_order(index: Path = INDEX) -> list[Place]:
    "The notebooks in the order of the book; those without a place in the reading order come last."
    sections = re.split(r"^## (.+)$", "\n\n".join(markdown_cells(index)), flags=re.MULTILINE)[1:]
    return [Place(path, heading) for heading, text in zip(sections[::2], sections[1::2])
            if heading != "Glossary" for path in ENTRY.findall(text)]


def place_lines(order: list[Place]) -> dict[str, str]:
    "The line of each notebook. The pages in front of Part I have none: visitors see them in Colab or as an app."
    def link(name: str, to: str, page: str) -> str:
        return f"[{name}]({Path(os.path.relpath(to, Path(page).parent)).as_posix()})"

    chapters = [place for place in order if place.heading.startswith("Part ")]
    lines = {}
    for at, (path, heading) in enumerate(chapters):
        part = [place.path for place in chapters if place.heading == heading]
        line = f"{link('The book', INDEX.name, path)}, {heading.split(':')[0]}, {part.index(path) + 1} of {len(part)}."
        for word, beside in ("Before", chapters[:at][-1:]), ("Next", chapters[at + 1:][:1]):
            for other, _ in beside: line += f" {word}: {link(Path(other).stem, other, path)}."
        lines[path] = f"*{line}*"
    for path, heading in order:
        if heading == REFERENCE:
            lines[path] = f"*{link('The book', INDEX.name, path)}, reference: read it when you need it.*"
    return lines


def with_line(text: str, line: str | None) -> str:
    "The first cell of a notebook with this line below its subtitle, in place of the one that was there."
    text = LINE.sub("", text)
    if line is None: return text
    subtitle = SUBTITLE.search(text)
    return f"{text[:subtitle.end()]}\n\n{line}{text[subtitle.end():]}"


def update(path: Path, line: str | None) -> str | None:
    "The notebook's new text, as nbdev-clean writes it; None where its line is up to date."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    first = notebook["cells"][0]
    text = with_line("".join(first["source"]), line)
    if text == "".join(first["source"]): return None
    first["source"] = text.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="put the lines into the notebooks")
    mode.add_argument("--check", action="store_true", help="exit 1 where a line is not up to date")
    write = parser.parse_args().write
    order = read_order()
    lines = place_lines(order)
    changed = {path: text for path, _ in order if (text := update(NBS / path, lines.get(path)))}
    for path, text in changed.items():
        if write: (NBS / path).write_text(text, encoding="utf-8")
        print(path)
    if changed and not write: sys.exit(f"{len(changed)} notebooks say another place: python docs/book.py --write")


if __name__ == "__main__": main()
