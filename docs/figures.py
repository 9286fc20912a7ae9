"""How the book is written, in figures: words, cells, pictures and assertions of each notebook.

    python docs/figures.py [--all]    the whole book; with --all one line per notebook first
"""
import ast
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"


def lines(cell: dict) -> list[str]:
    "The lines of a cell that are not blank."
    return [line for line in "".join(cell["source"]).splitlines() if line.strip()]


def asserts(cell: dict) -> bool:
    try: tree = ast.parse("".join(cell["source"]))
    except SyntaxError: return False # a cell with a magic command
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def pictures(cell: dict) -> int:
    outputs = [output.get("data", {}) for output in cell.get("outputs", [])]
    return sum(any(kind.startswith("image/") for kind in data) for data in outputs)


def measure(paths: list[Path]) -> dict[str, float]:
    "The figures of these notebooks together."
    cells = [cell for path in paths for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    words = [line for cell in cells if cell["cell_type"] == "markdown" for line in lines(cell)]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    said = sum(map(len, words))
    return {
        "words": len(words) / max(1, len(words) + sum(len(lines(cell)) for cell in code)),
        "characters": said / max(1, said + sum(len("".join(cell["source"])) for cell in code)),
        "median": statistics.median(len(lines(cell)) for cell in code) if code else 0,
        "pictures": sum(map(pictures, code)),
        "cells": len(code),
        "asserting": sum(map(asserts, code)),
        "wide": sum(len(line) > 120 for cell in code for line in lines(cell)),
        "kB": sum(path.stat().st_size for path in paths) / 1000}


def row(name: str, figures: dict[str, float]) -> str:
    share = 5 * figures["pictures"] / max(1, figures["cells"])
    parts = [f"words {figures['words']:4.0%} of lines, {figures['characters']:4.0%} of characters",
             f"{figures['cells']:4} code cells of {figures['median']:2.0f} lines",
             f"{figures['asserting']:3} with an assertion",
             f"{figures['pictures']:3} pictures, {share:4.2f} in five cells",
             f"{figures['wide']:3} lines too wide", f"{figures['kB']:5.0f} kB"]
    return f"{name:32} {'; '.join(parts)}"


if __name__ == "__main__":
    notebooks = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    if "--all" in sys.argv:
        for path in notebooks: print(row(path.relative_to(NBS).with_suffix("").as_posix(), measure([path])))
    print(row(f"{len(notebooks)} notebooks", measure(notebooks)))
