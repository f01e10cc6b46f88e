"""Packages as source text: a module's syntax tree and the names that it binds, from a wheel or a folder."""

import ast
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path

Binding = ast.stmt | tuple[str, str | None]
"""A name is bound to a statement that defines it, or to an import of (module, name in it or None)."""


class Module:
    """One module's syntax tree."""

    def __init__(self, name: str, text: str, *, package: bool) -> None:
        self.name = name
        self.tree = ast.parse(text)
        self._package = name if package else name.rpartition(".")[0]

    @cached_property
    def names(self) -> Mapping[str, Binding]:
        """The final binding of each name of the module, without star imports."""
        names: dict[str, Binding] = {}
        for statement in flat(self.tree.body):
            names.update(self.bound_by(statement))
        return names

    def bound_by(self, statement: ast.stmt) -> Iterator[tuple[str, Binding]]:
        """Yield the names that one statement binds."""
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, statement
            case ast.Assign(targets=targets):
                yield from ((target.id, statement) for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case ast.Import(names=aliases):
                for alias in aliases:
                    root = alias.name.split(".")[0]
                    yield (alias.asname, (alias.name, None)) if alias.asname else (root, (root, None))
            case ast.ImportFrom(names=aliases):
                module = self.absolute(statement)
                yield from (
                    (alias.asname or alias.name, (module, alias.name)) for alias in aliases if alias.name != "*"
                )

    @cached_property
    def stars(self) -> tuple[str, ...]:
        """The modules from which it imports all names."""
        return tuple(
            self.absolute(statement)
            for statement in flat(self.tree.body)
            if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"
        )

    @cached_property
    def public(self) -> frozenset[str] | None:
        """`__all__`, if it is a list of constants; else None."""
        match self.names.get("__all__"):
            case ast.Assign(value=ast.List(elts=items) | ast.Tuple(elts=items)):
                return frozenset(str(item.value) for item in items if isinstance(item, ast.Constant))
        return None

    def absolute(self, statement: ast.ImportFrom) -> str:
        """Return the module that `from ...x import` names."""
        if not statement.level:
            return statement.module or ""
        parts = self._package.split(".")
        base = parts[: len(parts) - statement.level + 1]
        return ".".join([*base, statement.module] if statement.module else base)


def flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body and of its conditional blocks, but not of the functions and classes in it."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from flat(getattr(statement, part, []))
        for handler in getattr(statement, "handlers", []):
            yield from flat(handler.body)


class Sources:
    """The modules of one package."""

    def __init__(self, read: Callable[[str], str | None]) -> None:
        """`read` returns the text of `package/module.py`, or None."""
        self._read = read
        self.module = cache(self._module)

    @classmethod
    def of_wheel(cls, path: Path) -> "Sources":
        """Return the modules in a wheel."""
        archive = zipfile.ZipFile(path)
        files = set(archive.namelist())
        return cls(lambda name: archive.read(name).decode() if name in files else None)

    @classmethod
    def of_folder(cls, folder: Path) -> "Sources":
        """Return the modules below `folder`, which contains the package's folder."""

        def read(name: str) -> str | None:
            path = folder / name
            return path.read_text(encoding="utf-8") if path.is_file() else None

        return cls(read)

    def _module(self, name: str) -> Module | None:
        base = name.replace(".", "/")
        for path, package in ((f"{base}/__init__.py", True), (f"{base}.py", False)):
            text = self._read(path)
            if text is not None:
                return Module(name, text, package=package)
        return None
