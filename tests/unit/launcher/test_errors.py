"""The tree of errors in the docstring of `launcher.errors` is the tree of the code."""

import importlib
import inspect
import pkgutil
import re

import launcher
from launcher import errors
from launcher.errors import LauncherError

Tree = dict[str, tuple[str, int]]
"""Of each class its base class and its exit code."""


def tree_of_docstring() -> Tree:
    tree: Tree = {}
    ancestors: list[str] = []
    for indent, name, code in re.findall(r"^([│├└─ ]*)(\w+Error) +(\d+)\b", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4
        ancestors[depth:] = [name]
        tree[name] = (ancestors[depth - 1] if depth else "Exception", int(code))
    return tree


def tree_of_code() -> Tree:
    names = [module.name for module in pkgutil.walk_packages(launcher.__path__, "launcher.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    classes = [found for module in modules for found in vars(module).values() if inspect.isclass(found)]
    return {
        found.__name__: (found.__base__.__name__, int(found.exit_code))
        for found in classes
        if issubclass(found, LauncherError) and found.__base__ is not None and not found.__name__.startswith("_")
    }


def test_the_docstring_lists_every_error_below_its_base_with_its_exit_code() -> None:
    assert tree_of_docstring() == tree_of_code()
