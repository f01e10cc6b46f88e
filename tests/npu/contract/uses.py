"""Our uses of torch_npu and apex, with place and call: collected from syntax trees, by following values.

A value is followed by names, not by types: through variables, attributes, arguments and results of functions of the
same name. So an object that `Sgd.make` makes is recognised as `training.optimizer` in another module. If that
includes too much, a use has several origins, and `verdict` requires that one of them fits.
"""

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.npu.contract.calls import Call, signature_of

ROOTS = ("torch_npu", "apex")
# torch_npu also makes its module `npu` available as torch.npu, and its operators as torch.ops.npu.
OF_TORCH = {"torch.npu": "torch_npu.npu", "torch.ops.npu": "torch.ops.npu"}
LOWER_CASE_CLASSES = frozenset({"torch_npu.profiler.profile"})

Paths = frozenset[str]
NOTHING: Paths = frozenset()


@dataclass(frozen=True)
class Use:
    """One place where a library is used."""

    place: str
    paths: Paths
    """The possible meanings: `torch_npu.npu.set_device`, or `torch_npu.optim.NpuFusedSGD().step`."""
    call: Call | None = None
    stored: bool = False


@dataclass
class _Values:
    """The places that a library's values can reach; the sets grow until no new value is found."""

    names: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    attributes: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    results: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    arguments: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    functions: dict[tuple[str, bool], set[inspect.Signature]] = field(default_factory=lambda: defaultdict(set))
    """Our functions, by name and by whether they are methods."""

    def size(self) -> int:
        """Return the size of all sets together."""
        tables: Iterable[dict[object, set[str]]] = (self.names, self.attributes, self.results, self.arguments)  # type: ignore[assignment]
        return sum(len(values) for table in tables for values in table.values())


def collect(files: Iterable[Path], root: Path) -> list[Use]:
    """Return the uses in `files`; places are relative to `root`."""
    trees = {str(path.relative_to(root)): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    values = _Values()
    size = -1
    uses: list[Use] = []
    while size != values.size():
        size = values.size()
        uses = []
        for file, tree in trees.items():
            reader = _Reader(values, file)
            reader.visit(tree)
            uses += reader.uses
    return uses


class _Reader(ast.NodeVisitor):
    """Reads one file: learns where values go, and notes each use."""

    def __init__(self, values: _Values, file: str) -> None:
        self.uses: list[Use] = []
        self._values = values
        self._file = file
        self._scopes: list[str] = [file]
        self._class = ""

    # Where values come from.

    def _paths(self, node: ast.expr | None) -> Paths:
        paths = NOTHING
        match node:
            case ast.Name(id=name):
                paths = self._named(name)
            case ast.Attribute(value=value, attr=name):
                paths = self._attribute(value, name)
            case ast.Call(func=function):
                paths = self._result(node, function)
            case ast.IfExp(body=body, orelse=orelse):
                paths = self._paths(body) | self._paths(orelse)
            case ast.BoolOp(values=items) | ast.Tuple(elts=items):
                paths = NOTHING.union(*map(self._paths, items))
            case ast.NamedExpr(value=value) | ast.Await(value=value) | ast.Starred(value=value):
                paths = self._paths(value)
        return paths

    def _named(self, name: str) -> Paths:
        for depth in range(len(self._scopes), 0, -1):
            paths = self._values.names.get((":".join(self._scopes[:depth]), name))
            if paths:
                return frozenset(paths)
        return NOTHING

    def _attribute(self, value: ast.expr, name: str) -> Paths:
        dotted = OF_TORCH.get(f"{ast.unparse(value)}.{name}")
        if dotted:
            return frozenset({dotted})
        base = self._paths(value)
        if base:
            return frozenset(f"{path}.{name}" for path in base)
        owner = self._class if isinstance(value, ast.Name) and value.id == "self" else ""
        return frozenset(self._values.attributes.get((owner, name), ()))

    def _result(self, node: ast.Call, function: ast.expr) -> Paths:
        if ast.unparse(function) in {"importlib.import_module", "import_module"}:
            match node.args:
                case [ast.Constant(value=str() as module)] if module.split(".")[0] in ROOTS:
                    return frozenset({module})
        if _bare(function) == "getattr" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            return self._attribute(node.args[0], str(node.args[1].value))
        own = self._paths(function)
        if own and self._is_librarys(function):
            # Only objects of classes are followed: the result of a function is mostly one of torch's tensors.
            return frozenset(f"{path}()" for path in own if _is_class(path))
        return frozenset(self._values.results.get(_bare(function), ()))

    def _is_librarys(self, function: ast.expr) -> bool:
        """Return whether the called function is the library's, not our method with the name of its attribute."""
        if not isinstance(function, ast.Attribute) or self._paths(function.value):
            return True
        return (function.attr, True) not in self._values.functions

    # Where they go.

    def _learn(self, target: ast.expr, paths: Paths) -> None:
        paths = _whole(paths)
        match target:
            case ast.Name(id=name):
                self._values.names[":".join(self._scopes), name] |= paths
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                self._values.attributes[self._class, name] |= paths
                self._values.attributes["", name] |= paths
            case ast.Tuple(elts=items):
                for item in items:
                    self._learn(item, paths)

    def visit_Import(self, node: ast.Import) -> None:  # ast's name
        for alias in node.names:
            if alias.name.split(".")[0] in ROOTS:
                path = alias.name if alias.asname else alias.name.split(".")[0]
                self._learn(ast.Name(alias.asname or path), frozenset({path}))
                self._note(node, frozenset({alias.name}))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and not node.level and node.module.split(".")[0] in ROOTS:
            for alias in node.names:
                path = frozenset({f"{node.module}.{alias.name}"})
                self._learn(ast.Name(alias.asname or alias.name), path)
                self._note(node, path)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            match target, node.value:
                case ast.Tuple(elts=names), ast.Tuple(elts=values) if len(names) == len(values):
                    for name, value in zip(names, values, strict=True):
                        self._learn(name, self._paths(value))
                case _:
                    self._learn(target, self._paths(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._learn(node.target, self._paths(node.value))

    def visit_Return(self, node: ast.Return) -> None:
        self.generic_visit(node)
        if len(self._scopes) > 1:
            self._values.results[self._scopes[-1].rpartition(".")[2]] |= _whole(self._paths(node.value))

    # Scopes.

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        for statement in node.body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name)):  # a dataclass' field
                    self._values.attributes[node.name, name] |= self._values.arguments[node.name, name]
                    self._values.attributes["", name] |= self._values.arguments[node.name, name]
        self.generic_visit(node)
        self._class = outer

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        called_as = self._class if node.name == "__init__" else node.name
        arguments = [*node.args.posonlyargs, *node.args.args]
        method = bool(self._class) and called_as != self._class
        self._values.functions[called_as, method].add(signature_of(node, bound=bool(self._class)))
        self._scopes.append(f"{self._class}.{node.name}")
        for argument in [*arguments, *node.args.kwonlyargs]:
            self._learn(ast.Name(argument.arg), frozenset(self._values.arguments[called_as, argument.arg]))
        self.generic_visit(node)
        self._scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    # Uses.

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if self._paths(node.value) or ast.unparse(node) in OF_TORCH:
            self._note(node, self._paths(node), stored=isinstance(node.ctx, ast.Store))

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        paths = self._paths(node.func)
        if paths and self._is_librarys(node.func):
            self._note(node, paths, call=Call.of(node))
        else:
            self._hand_over(node)
        if _bare(node.func) in {"getattr", "import_module"}:
            self._note(node, self._paths(node))

    def _hand_over(self, node: ast.Call) -> None:
        """Pass the arguments to the parameters of all our functions that have this name and accept them."""
        function, call = _bare(node.func), Call.of(node)
        for signature in self._values.functions.get((function, isinstance(node.func, ast.Attribute)), ()):
            if call.problem(signature) is None:
                for name, value in zip(signature.parameters, node.args, strict=False):
                    self._values.arguments[function, name] |= _whole(self._paths(value))
        for keyword in node.keywords:
            if keyword.arg is not None:
                self._values.arguments[function, keyword.arg] |= _whole(self._paths(keyword.value))

    def _note(self, node: ast.stmt | ast.expr, paths: Paths, *, call: Call | None = None, stored: bool = False) -> None:
        if paths:
            self.uses.append(Use(f"{self._file}:{node.lineno}", paths, call, stored))


def _is_class(path: str) -> bool:
    return "()" not in path and (path.rpartition(".")[2][:1].isupper() or path in LOWER_CASE_CLASSES)


def _whole(paths: Paths) -> Paths:
    """Leave out the attributes of objects: they are mostly plain values."""
    return frozenset(path for path in paths if "()." not in path)


def _bare(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def strings(files: Iterable[Path], root: Path) -> Iterator[tuple[str, str]]:
    """Yield every string constant with its place: it can be the name of an environment variable."""
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(root)}:{node.lineno}", node.value
