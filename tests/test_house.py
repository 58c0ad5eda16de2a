"""The house holds together: arrows between rooms go one way, private names stay private, functions are short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

import vlm_plugin

ROOT = Path(vlm_plugin.__path__[0]).resolve().parent
# From the foundation up: a room imports from its own floor's left and from the floors below, never from above.
FLOORS = (
    ("foreign", "opcodes"),
    ("checks", "files", "terminal"),
    ("unpickle",),
    ("features",),
    ("blockwise",),
    ("matching", "distributed", "augment"),
    ("matcher",),
    ("host",),
    ("loss",),
    ("metrics",),
    ("data",),
    ("training",),
    ("report", "pretraining"),
    ("evaluation",),
    ("gans",),
    ("baselines", "hosts"),
    ("cli",),
    ("__main__",),
)
SCRIPTS = ("main.py", "export.py")
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# Functions that may be longer, or take more, and why.
LONG: dict[str, str] = {}
MANY = {
    "vlm_plugin.loss.DualVLMLoss.__init__": "the public surface: each is a knob of the loss, by keyword alone",
    "vlm_plugin.baselines.dfgan.losses.discriminator_terms": "networks, batches, published constants, the precision",
}
MOST_LINES, MOST_ARGUMENTS = 60, 7


class Import(NamedTuple):
    source: str
    """Module that imports."""
    target: str
    """Module that is imported."""
    name: str
    """What of it."""
    line: int


def modules() -> dict[str, Path]:
    """Every module of the product by the name under which it is imported."""
    found = {}
    for folder, prefix in (("vlm_plugin", ""), ("baselines", "vlm_plugin.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    # The scripts in baselines/ are no modules.
    return {
        name: path
        for name, path in found.items()
        if not (name.startswith("vlm_plugin.baselines") and path.name in SCRIPTS)
    }


MODULES = modules()


def imports(name: str) -> list[Import]:
    """What a module imports of the product, wherever in it."""
    path, found = MODULES[name], []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(name, a.name, "", node.lineno) for a in node.names if a.name.startswith("vlm_plugin")]
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            if base.split(".")[0] != "vlm_plugin":
                continue
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                target, what = (whole, "") if whole in MODULES else (base, alias.name)
                found.append(Import(name, target, what, node.lineno))
    return found


def room(module: str) -> str:
    """The part of the house that a module lies in; the public names of `vlm_plugin` itself are the loss's."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "loss"


def test_every_module_has_a_floor() -> None:
    assert {room(name) for name in MODULES} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows_go_one_way(name: str) -> None:
    if name == "vlm_plugin":  # its public names are imported when they are asked for
        return
    for found in imports(name):
        own, other = FLOOR[room(name)], FLOOR[room(found.target)]
        assert room(found.target) == room(name) or other < own, (
            f"{name}, line {found.line}: {room(name)} imports {found.target}, which lies above it or beside it"
        )


def test_rooms_import_each_other_at_all() -> None:
    """A reader of imports that finds none would pass every other test."""
    assert sum(len(imports(name)) for name in MODULES) > 300


def test_no_module_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for name in MODULES:
        # A package's __init__ names its modules, which is no circle when they do not ask it back.
        graph[name] = {found.target for found in imports(name)} - {name}
    graph["vlm_plugin"] = set()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join(path[path.index(name) :])} -> {name}"
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_private_name_is_imported(name: str) -> None:
    private = [f"{found.target}.{found.name}" for found in imports(name) if found.name.startswith("_")]
    assert [p for p in private if not p.endswith("__version__")] == []


def functions() -> dict[str, ast.FunctionDef]:
    found = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, ast.Module)):
                owner = f"{name}.{node.name}" if isinstance(node, ast.ClassDef) else name
                found |= {f"{owner}.{f.name}": f for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


def lines_of(function: ast.FunctionDef) -> int:
    """Lines of code, without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def arguments_of(function: ast.FunctionDef) -> int:
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_functions_are_short() -> None:
    long = {name for name, function in functions().items() if lines_of(function) > MOST_LINES}
    assert long == set(LONG)


def test_functions_take_few_arguments() -> None:
    many = {name for name, function in functions().items() if arguments_of(function) > MOST_ARGUMENTS}
    assert many == set(MANY)


def test_importing_the_drop_in_loads_no_other_room() -> None:
    """A fresh interpreter: neither data nor tools, nor what only they need."""
    above = tuple(f"vlm_plugin.{name}" for name, floor in FLOOR.items() if floor > FLOOR["loss"])
    heavy = ("torchmetrics", "torchvision", "nltk", "scipy", "yaml", "matplotlib", "jinja2")
    code = (
        "import sys, vlm_plugin; from vlm_plugin import DualVLMLoss, VLM, text_features; "
        f"print([m for m in sys.modules if m.split('.')[0] in {heavy!r} or m.startswith({above!r})])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
