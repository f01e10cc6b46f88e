"""The meaning of a dotted name in torch_npu: a module, a class, a function with its parameters, or nothing.

`torch_npu.npu.amp.GradScaler().update` is the method of an object of that class, or an inherited one; torch's own
sources are read for these. A value that is known only at run time, such as the result of a function, is `OPAQUE`: every
name exists in it.
"""

import ast
import importlib.util
import inspect
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.npu.contract.calls import Function, signature_of, signature_of_schema
from tests.npu.contract.sources import Module, Sources

COMPILED = "torch_npu/lib/libtorch_npu.so"
OPERATORS = "torch.ops.npu"


class MissingError(Exception):
    """The name does not exist; the message says which part of it is missing, and in what."""


@dataclass(frozen=True)
class Class:
    """A class, or an object of it."""

    module: Module
    node: ast.ClassDef
    instance: bool = False


@dataclass(frozen=True)
class Callable:
    """A function, a method or an operator, with its signatures: an operator can have several."""

    signatures: tuple[inspect.Signature, ...]
    node: Function | None = None


@dataclass(frozen=True)
class Opaque:
    """A value that is known only at run time."""


OPAQUE = Opaque()
Item = Module | Class | Callable | Opaque


class Library:
    """torch_npu by its sources, and torch, from which it inherits."""

    def __init__(self, sources: Sources, compiled: bytes = b"", text: bytes = b"") -> None:
        """`compiled` is its library, with the operators' schemas; `text` is all of its Python sources."""
        torch = importlib.util.find_spec("torch")
        assert torch is not None
        assert torch.origin is not None
        self._packages = {"torch_npu": sources, "torch": Sources.of_folder(Path(torch.origin).parents[1])}
        self._compiled = compiled
        self._text = text
        self.find = cache(self._find)

    @classmethod
    def of_wheel(cls, path: Path) -> "Library":
        """Return the library in a wheel."""
        with zipfile.ZipFile(path) as archive:
            texts = (archive.read(name) for name in archive.namelist() if name.endswith(".py"))
            return cls(Sources.of_wheel(path), archive.read(COMPILED), b"\0".join(texts))

    def _find(self, path: str) -> Item:
        """Return the meaning of `path`.

        Raises:
            MissingError: it does not exist.
        """
        if path.startswith(f"{OPERATORS}."):
            name = path.removeprefix(f"{OPERATORS}.")
            try:
                return self._operator(name)
            except MissingError:
                raise MissingError(f"{OPERATORS} has no {name}") from None
        root, *steps = re.findall(r"\w+|\(\)", path)
        module = self.module(root)
        if module is None:
            raise MissingError(f"there is no module {root}")
        item: Item = module
        done = [root]
        try:
            for step in steps:
                item = self._called(item) if step == "()" else self.member(item, step)
                done.append(step)
        except MissingError:
            parent = ".".join(done).replace(".()", "()")
            raise MissingError(f"{parent} has no {steps[len(done) - 1]}") from None
        return item

    def module(self, name: str) -> Module | None:
        """Return a module of torch_npu or torch; None if it does not exist."""
        package = self._packages.get(name.split(".", maxsplit=1)[0])
        return package.module(name) if package else None

    def mentions(self, name: str) -> bool:
        """Return whether the compiled library or a Python source has this name as a whole word."""
        word = name.encode()
        return any(
            not _in_a_word(text[place - 1]) and not _in_a_word(text[place + len(word)])
            for text in (self._compiled, self._text)
            for place in _places(text, word)
        )

    def member(self, item: Item, name: str) -> Item:
        """Return the meaning of `item.name`."""
        match item:
            case Module():
                return self._of_module(item, name)
            case Class():
                return self._of_class(item, name)
            case _:
                return OPAQUE

    def names(self, module: Module) -> frozenset[str]:
        """Return the public names of a module, with the imported ones."""
        names = {name for name in module.names if not name.startswith("_")}
        for star in module.stars:
            source = self.module(star)
            if source is not None:
                names |= self.names(source) if source.public is None else source.public
        return frozenset(names)

    def _of_module(self, module: Module, name: str) -> Item:
        if name in module.names:
            return self._bound(module, name)
        for star in module.stars:
            source = self.module(star)
            if source is None:
                return OPAQUE
            if name in (self.names(source) if source.public is None else source.public):
                return self._of_module(source, name)
        submodule = self.module(f"{module.name}.{name}")
        if submodule is not None:
            return submodule
        if module.name == "torch_npu":
            return self._operator(name)
        raise MissingError

    def _bound(self, module: Module, name: str) -> Item:
        match module.names[name]:
            case (str() as source, original):
                return self._imported(source, original)
            case ast.ClassDef() as node:
                return Class(module, node)
            case ast.FunctionDef() | ast.AsyncFunctionDef() as node:
                return Callable((signature_of(node, bound=False),), node)
            case ast.Assign(value=value):
                return self._value(module, value)
        return OPAQUE

    def _imported(self, source: str, original: str | None) -> Item:
        module = self.module(source)
        if original is None or module is None:
            return module or OPAQUE
        return self.module(f"{source}.{original}") or self._of_module(module, original)

    def _value(self, module: Module, value: ast.expr) -> Item:
        """Return the meaning of an expression: a name, or a call of a class with a name."""
        match value:
            case ast.Name(id=name):
                try:
                    return self._of_module(module, name)
                except MissingError:
                    return OPAQUE
            case ast.Attribute(value=inner, attr=name):
                try:
                    return self.member(self._value(module, inner), name)
                except MissingError:
                    return OPAQUE
            case ast.Call(func=function):
                return self._called(self._value(module, function))
        return OPAQUE

    def _called(self, item: Item) -> Item:
        return Class(item.module, item.node, instance=True) if isinstance(item, Class) else OPAQUE

    def _of_class(self, item: Class, name: str) -> Item:
        for owner in self.bases(item):
            if isinstance(owner, Opaque):
                return OPAQUE
            for statement in reversed(owner.node.body):
                match statement:
                    case ast.FunctionDef() | ast.AsyncFunctionDef() if statement.name == name:
                        return _method(statement, instance=item.instance)
                    case ast.ClassDef() if statement.name == name:
                        return Class(owner.module, statement)
                    case ast.Assign() | ast.AnnAssign() if name in dict(owner.module.bound_by(statement)):
                        return OPAQUE
            if name in _set_on_self(owner.node) or name in _answered_by_name(owner.node):
                return OPAQUE
        raise MissingError

    def bases(self, item: Class) -> Iterator[Class | Opaque]:
        """Yield the class, and each class with a source that it inherits from."""
        yield item
        for base in item.node.bases:
            owner = self._value(item.module, base)
            if isinstance(owner, Class):
                yield from self.bases(owner)
            elif not (isinstance(base, ast.Name) and base.id == "object"):
                yield OPAQUE

    def constructor(self, item: Class) -> Callable | None:
        """Return the function behind a call of the class; None if it is known only at run time."""
        for owner in self.bases(item):
            if isinstance(owner, Opaque):
                return None
            methods = {node.name: node for node in owner.node.body if isinstance(node, ast.FunctionDef)}
            node = methods.get("__init__") or methods.get("__new__")
            if node is not None:
                return Callable((signature_of(node, bound=True),), node)
        return Callable((inspect.Signature(),))

    def _operator(self, name: str) -> Callable:
        # Each schema is a separate string, which ends in a zero byte.
        places = _places(self._compiled, name.encode())
        starts = [place for place in places if not _in_a_word(self._compiled[place - 1])]
        texts = {self._compiled[place : self._compiled.index(b"\0", place)] for place in starts}
        schemas = sorted(text.decode() for text in texts if re.fullmatch(rb"\w+(\.\w+)?\(.*\) -> .+", text))
        schemas = [schema for schema in schemas if re.split(r"[.(]", schema)[0] == name]
        if not schemas:
            raise MissingError
        return Callable(tuple(map(signature_of_schema, schemas)))


def _method(node: Function, *, instance: bool) -> Item:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if decorators & {"property", "cached_property", "functools.cached_property", "classproperty"}:
        return OPAQUE
    bound = "classmethod" in decorators or (instance and "staticmethod" not in decorators)
    return Callable((signature_of(node, bound=bound),), node)


def _set_on_self(node: ast.ClassDef) -> Iterator[str]:
    """Yield the attributes that its methods set on an object."""
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def _answered_by_name(node: ast.ClassDef) -> Iterator[str]:
    """The names for which `__setattr__` or `__getattr__` has an answer: `if name == "allow_hf32"`."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name in {"__setattr__", "__getattr__"}:
            for inner in ast.walk(method):
                match inner:
                    case ast.Compare(left=ast.Name(), ops=[ast.Eq()], comparators=[ast.Constant(value=str() as name)]):
                        yield name


def _places(text: bytes, word: bytes) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


def _in_a_word(byte: int) -> bool:
    return chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "_.:")
