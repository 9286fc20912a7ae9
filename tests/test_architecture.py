"""The plan of the house: which wing may lean on which, and where a newcomer finds what. Modules are read, not run."""
import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tumorseg"
STUB = PACKAGE / "__init__.pyi"

# A wing leans on the floors below its own, never on its own floor: so no two wings can import each other.
# `pictures` is a module that every wing draws with, and leans on data and metrics itself.
FLOORS = {"core": 1,
          "data": 2, "demo": 2, "metrics": 2,
          "pictures": 3,
          "quality": 4, "model": 4,
          "training": 5,
          "report": 6, "tuning": 6, "checks": 6, "evaluation": 6,
          "cli": 7, "widgets": 7}

# The room quiz: what is looked for, and the module that a newcomer opens first
ROOMS = {"the device that is chosen": ("model.inference", ["best_device", "best_precision"]),
         "normalisation and probability maps": ("model.inference", ["normalise", "probabilities"]),
         "a file written whole": ("core", ["write_whole", "save_json", "save_table"]),
         "how folds are made": ("data.splits", ["patient_folds", "choose_split"]),
         "the explore widget": ("widgets.explore", ["explore"]),
         "settings read from JSON": ("training.config", ["Config", "load_config"]),
         "the first weights": ("training.train", ["first_network"]),
         "two models side by side": ("widgets.browse", ["browse"]),
         "a download": ("data.download", ["download_article"]),
         "expert contours": ("data.experts", ["expert_contours"]),
         "the colours": ("pictures", ["TRUTH", "BOX", "PREDICTED", "FOUND", "MISSED", "FALSE"])}


def modules() -> dict[str, ast.Module]:
    "The source of each exported module, by its name below tumorseg: `data.coco`."
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("__init__.py", "_modidx.py"): continue
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        sources[name] = ast.parse(path.read_text(encoding="utf-8"))
    return sources


class Imports(ast.NodeVisitor):
    "Every import of a module, inside functions too, by its absolute name; those for type checkers are left out."
    def __init__(self, module: str, tree: ast.Module):
        self.package, self.names = ["tumorseg", *module.split(".")[:-1]], []
        self.visit(tree)

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.unparse(node.test): self.generic_visit(node)

    def visit_Import(self, node):
        self.names += [alias.name for alias in node.names]

    def visit_ImportFrom(self, node):
        above = self.package[:len(self.package) + 1 - node.level] if node.level else []
        source = ".".join([*above, *filter(None, [node.module])])
        self.names += [f"{source}.{alias.name}" for alias in node.names]


def room(name: str) -> str | None:
    "The module of ours that an imported name is or comes from: `data.coco` for `tumorseg.data.coco.open_coco`."
    parts = name.split(".")[1:] if name.split(".")[0] == "tumorseg" else []
    while parts and ".".join(parts) not in MODULES: parts.pop()
    return ".".join(parts) or None


def wing(module: str) -> str: return module.split(".")[0]


def defined(tree: ast.Module) -> set[str]:
    "Functions, classes and variables at the top of a module."
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return ({node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            | {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)})


MODULES = modules()
IMPORTS = {module: Imports(module, tree).names for module, tree in MODULES.items()}
ARROWS = {module: {room(name) for name in names} - {None, module} for module, names in IMPORTS.items()}


def arrows(*wings: str) -> set[tuple[str, str]]:
    "Pairs of modules: one of these wings, and what it imports from another wing."
    return {(module, other) for module, others in ARROWS.items() for other in others
            if wing(module) in wings and wing(other) != wing(module)}


def test_every_wing_has_its_floor():
    assert {wing(module) for module in MODULES} == set(FLOORS)
    assert len(MODULES) > 40 and sum(map(len, ARROWS.values())) > 150 # the reading itself works


def test_only_the_command_goes_through_the_front_door():
    "The command is a visitor, like a user. The front door leads to all other modules: they would come in a circle."
    through = [f"{module}: {name}" for module, names in IMPORTS.items() for name in names
               if wing(name) == "tumorseg" and room(name) is None and module != "cli"]
    assert not through


def test_a_wing_says_nothing_of_its_own():
    for path in PACKAGE.glob("*/__init__.py"):
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        assert not [node for node in statements if not isinstance(node, ast.Expr)], f"{path} is for a docstring only"


def test_arrows_only_point_down():
    climbing = [f"{module} imports {other}" for module, other in sorted(arrows(*FLOORS))
                if FLOORS[wing(other)] >= FLOORS[wing(module)]]
    assert not climbing


def test_no_module_leans_on_itself_in_a_circle():
    try: TopologicalSorter(ARROWS).prepare()
    except CycleError as error: pytest.fail(" -> ".join(error.args[1]))


def test_no_two_wings_import_each_other():
    pairs = {(wing(module), wing(other)) for module, other in arrows(*FLOORS)}
    assert not {pair for pair in pairs if pair[::-1] in pairs}


def test_data_and_quality_know_no_network():
    assert not {arrow for arrow in arrows("data", "quality") if wing(arrow[1]) in ("model", "training")}
    networks = {f"{module}: {name}" for module, names in IMPORTS.items() if wing(module) in ("data", "quality")
                for name in names if name.startswith("torch.nn")}
    assert not networks


def test_a_model_is_used_without_a_training():
    assert not {arrow for arrow in arrows("model") if wing(arrow[1]) == "training"}


def test_metrics_know_no_files():
    modules = "pathlib", "os", "io", "shutil", "json", "csv", "PIL"
    helpers = tuple(f"tumorseg.core.{name}" for name in ("write_whole", "save_", "read_json", "new_folder"))
    methods = "open", "load", "save", "savefig", "read_csv", "to_csv", "write_text", "write_bytes"
    for module, tree in MODULES.items():
        if wing(module) != "metrics": continue
        assert not [name for name in IMPORTS[module] if wing(name) in modules or name.startswith(helpers)], module
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [call for call in calls if call.split(".")[-1] in methods], module


def test_nothing_leans_on_widgets_or_the_command():
    assert not {arrow for arrow in arrows(*FLOORS) if wing(arrow[1]) in ("widgets", "cli")}


@pytest.mark.skipif(not STUB.exists(), reason="there is no front door yet")
def test_no_wing_is_named_like_a_name_of_the_front_door():
    stub = ast.parse(STUB.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(stub) if isinstance(node, ast.ImportFrom)]
    offered = {alias.asname or alias.name for node in imports for alias in node.names}
    assert "train" in offered and not offered & set(FLOORS)


@pytest.mark.parametrize("question", ROOMS)
def test_the_room_quiz(question):
    place, names = ROOMS[question]
    homes = {name: [module for module, tree in MODULES.items() if name in defined(tree)] for name in names}
    assert homes == {name: [place] for name in names}


def test_colours_stand_in_one_place():
    "A colour of a picture is written once; a page's greys (three digits) are no colours of a picture."
    literal = r"#[0-9A-Fa-f]{6}\b"
    strings = [(module, node.value) for module, tree in MODULES.items() if module != "pictures"
               for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = sorted(f"{module}: {colour}" for module, text in strings for colour in re.findall(literal, text))
    assert not found
