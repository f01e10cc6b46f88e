"""A public name means one thing in the whole project, so that a search for it finds only that thing."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
# Names that two modules can define, and why.
ALLOWED = {
    "KIND": "each module of launcher/kinds defines one job kind",
    "app": "each program has one command line",
    "main": "each program has one entry point",
}


def test_no_public_name_is_defined_in_two_modules() -> None:
    repeated = _repeated_names()
    shown = "\n".join(f"{name}: {', '.join(places)}" for name, places in repeated.items())
    assert repeated.keys() == ALLOWED.keys(), f"rename all but one of each:\n{shown}"


def _repeated_names() -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for package in ("trainer", "launcher"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for name, line in _public_names(file):
                places[name].append(f"{file.relative_to(ROOT)}:{line}")
    return {name: lines for name, lines in sorted(places.items()) if len(lines) > 1}


def _public_names(file: Path) -> Iterator[tuple[str, int]]:
    """Yield each function, class, constant and alias that the module defines, with its line."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            names = [part.id for part in parts if isinstance(part.ctx, ast.Store)]
        yield from ((name, node.lineno) for name in dict.fromkeys(names) if not name.startswith("_"))
