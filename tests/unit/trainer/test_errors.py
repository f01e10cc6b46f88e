"""The error tree in one docstring is the whole tree, and each error's name says that it is one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import trainer
from trainer.shared import errors

_ROOT = "TrainerError"
_BUILT_IN = {"Exception", "OSError", "RuntimeError", "ValueError"}


def _classes() -> dict[str, str]:
    """Return each class of the trainer that has a base, and its first base."""
    sources = Path(trainer.__file__).parent.rglob("*.py")
    classes = (node for source in sources for node in ast.walk(ast.parse(source.read_bytes())))
    return {node.name: ast.unparse(node.bases[0]) for node in classes if isinstance(node, ast.ClassDef) and node.bases}


def _lineage(name: str, classes: dict[str, str]) -> Iterator[str]:
    while name in classes:
        name = classes[name]
        yield name


def _drawn() -> dict[str, str]:
    """Return each error in the docstring's tree and the one above it."""
    above, bases = [_ROOT], dict[str, str]()
    for indent, name in re.findall(r"^([│ ]*)[├└]── (\w+)  ", errors.__doc__ or "", flags=re.MULTILINE):
        depth = len(indent) // 4 + 1
        bases[name] = above[depth - 1]
        above[depth:] = [name]
    return bases


def test_the_docstring_holds_the_whole_tree_with_every_exit_code() -> None:
    classes = _classes()
    assert _drawn() == {name: base for name, base in classes.items() if _ROOT in _lineage(name, classes)}
    for name, code in re.findall(r"(\w+Error) +(\d+)  ", errors.__doc__ or ""):
        known = next(error for error in (name, *_lineage(name, classes)) if hasattr(errors, error))
        assert getattr(errors, known).exit_code == int(code), name


def test_the_name_of_every_exception_ends_in_error() -> None:
    classes = _classes()
    raised = [name for name in classes if not _BUILT_IN.isdisjoint(_lineage(name, classes))]
    assert _ROOT in raised
    assert [name for name in raised if not name.endswith("Error")] == []
