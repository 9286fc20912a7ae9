"""The pages of the API, from docments: the comment behind a parameter says what it is. Modules are read, not run."""
import ast
import html
import io
import re
import tokenize
from collections import defaultdict
from itertools import chain
from pathlib import Path

from book import ROOT

PACKAGE = ROOT / "tumorseg"


def prose(text: str) -> str:
    "Text of a docstring or a comment, in which nothing but `code` is markdown."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>|\\\[\]])", r"\\\1", part) for part in parts)


class Module:
    "A module as it stands in its file."
    def __init__(self, path: Path):
        source = path.read_text(encoding="utf-8")
        self.tree = ast.parse(source)
        self.name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        self.wing = self.name.split(".")[1]
        self.notebook = re.search(r"File to edit: (?:\.\./)*nbs/(.+)\.ipynb", source)[1]
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        self.comments = {item.start[0]: item.string.lstrip("# ") for item in tokens if item.type == tokenize.COMMENT}
        self.defined = {node.name: node for node in self.tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        exported = next(node.value for node in self.tree.body if ast.unparse(node).startswith("__all__ = "))
        self.public = [name for name in ast.literal_eval(exported) if name in self.defined]

    def page(self) -> str:
        "What this module has, in markdown."
        notebook = f"[{Path(self.notebook).name}](../{self.notebook}.md)"
        head = f"## {self.name}\n\n{prose(ast.get_docstring(self.tree))}\n\nExplained in {notebook}."
        return "\n\n".join([head, *(self.described(self.defined[name], name) for name in self.public)])

    def body(self, node: ast.ClassDef) -> list[ast.stmt]:
        "What stands in a class, and in the private ones that it is made of."
        bases = [self.defined[base.id] for base in node.bases if ast.unparse(base).startswith("_")]
        return [*chain.from_iterable(map(self.body, bases)), *node.body]

    def described(self, node: ast.FunctionDef | ast.ClassDef, name: str) -> str:
        "A function or a class: its call, its docstring, its parameters; then the methods of a class."
        body = self.body(node) if isinstance(node, ast.ClassDef) else []
        functions = [item for item in body if isinstance(item, ast.FunctionDef)]
        fields = [item for item in body if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_")]
        made = [item for item in functions if item.name == "__init__"] or [node][:not body]
        parameters = [(item.target.id, item, item.annotation, item.value) for item in fields]
        if made: parameters = arguments(made[0])
        public = [item for item in functions if not item.name.startswith("_") or item.name == "__call__"]
        properties = [(item.name, item.returns, ast.get_docstring(item)) for item in public if is_property(item)]
        parts = [f"#### {prose(name)}" if "." in name else f"### {prose(name)} {{ #{name} }}",
                 call(name.removesuffix(".__call__"), parameters),
                 prose(ast.get_docstring(node) or ""),
                 table("parameter", [(part, kind, self.comment(item)) for part, item, kind, _ in parameters
                                     if part != "*"]),
                 table("property", properties)]
        parts += [self.described(item, f"{name}.{item.name}") for item in public if not is_property(item)]
        return "\n\n".join(filter(None, parts))

    def comment(self, node: ast.AST) -> str:
        "What stands on the line on which a parameter begins or ends."
        return self.comments.get(node.lineno) or self.comments.get(node.end_lineno, "")


def is_property(function: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def table(head: str, rows: list[tuple[str, ast.expr | None, str | None]]) -> str:
    "Name, type and meaning; nothing where there are no rows."
    lines = [f"| {head} | type | meaning |", "|---|---|---|"]
    for name, kind, meaning in rows:
        kind = (kind.value if isinstance(kind, ast.Constant) else ast.unparse(kind)) if kind else ""
        kind = html.escape(str(kind)).replace("|", "&#124;")
        lines.append(f"| {name} | <code>{kind}</code> | {prose(meaning or '')} |".replace("\n", " "))
    return "\n".join(lines) if rows else ""


def arguments(function: ast.FunctionDef) -> list[tuple]:
    "Name, node, type and default of each, with a star where those begin that go by name only; and what comes back."
    args = function.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    found = [(arg.arg, arg, arg.annotation, default) for arg, default in zip(plain, defaults)]
    if found and found[0][0] in ("self", "cls"): del found[0]
    if args.vararg: found.append((f"\\*{args.vararg.arg}", args.vararg, args.vararg.annotation, None))
    elif args.kwonlyargs: found.append(("*", function, None, None))
    found += [(arg.arg, arg, arg.annotation, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults)]
    if args.kwarg: found.append((f"\\*\\*{args.kwarg.arg}", args.kwarg, args.kwarg.annotation, None))
    if function.returns and ast.unparse(function.returns) != "None":
        found.append(("*returns*", function.returns, function.returns, None))
    return found


def call(name: str, parameters: list[tuple]) -> str:
    "The call without its types, which the table has; each parameter on its own line where they are many."
    parts = [part.replace("\\", "") + (f"={ast.unparse(default)}" if default else "")
             for part, _, _, default in parameters if part != "*returns*"]
    line = f"{name}({', '.join(parts)})"
    if len(line) > 90: line = f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"
    return f"```python\n{line}\n```"


def write_api(folder: Path) -> list[str]:
    "A page for each wing, and one for the front door, below this folder. Gives their paths."
    modules = [Module(path) for path in PACKAGE.rglob("*.py") if not path.name.startswith("_")]
    wings = defaultdict(list)
    for module in sorted(modules, key=lambda module: (module.wing, module.notebook)): wings[module.wing].append(module)
    (folder / "api").mkdir(parents=True, exist_ok=True)
    for wing, rooms in wings.items():
        text = "\n\n".join([f"# {wing}", *(room.page() for room in rooms)])
        (folder / f"api/{wing}.md").write_text(text, encoding="utf-8")
    front = ["# The front door", "`import tumorseg as ts` offers these names; each is imported when it is first used.",
             "| name | what |\n|---|---|"]
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body:
        room = next(module for module in modules if module.name == f"tumorseg.{node.module}")
        for alias in node.names:
            words = (ast.get_docstring(room.defined[alias.name]) or "").split("\n\n")[0].replace("\n", " ")
            front[-1] += f"\n| [`ts.{alias.name}`]({room.wing}.md#{alias.name}) | {prose(words)} |"
    (folder / "api/index.md").write_text("\n\n".join(front), encoding="utf-8")
    return ["api/index.md", *(f"api/{wing}.md" for wing in wings)]
