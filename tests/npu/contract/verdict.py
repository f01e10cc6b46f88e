"""Compare uses, or a stand-in for torch_npu, with the real library; each difference is one line."""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.npu.contract.calls import Call
from tests.npu.contract.library import Callable, Class, Item, Library, MissingError, Opaque
from tests.npu.contract.sources import Module, Sources
from tests.npu.contract.uses import Use

# The names of variables and options of CANN, HCCL and torch_npu.
VARIABLE = re.compile(
    r"(ACL|ASCEND|COMBINED|CPU_AFFINITY|HCCL|INF_NAN|PYTORCH_NPU|RANK_TABLE|TASK_QUEUE|TORCH_HCCL|TORCH_NPU)_[A-Z0-9_]+"
)


_BY_PLACE = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


def violations(uses: Iterable[Use], library: Library) -> list[str]:
    """Return the uses that the library does not have, or refuses."""
    return sorted({f"{use.place}: {problem}" for use in uses if (problem := _problem(use, library))})


def unverifiable(uses: Iterable[Use]) -> set[str]:
    """Return the uses of apex, which has no wheel to read: functions, classes, and methods of their objects."""
    paths = (path for use in uses for path in use.paths if not use.stored)
    names = (re.match(r"apex(\.\w+)+(\(\)\.\w+)?", path) for path in paths)
    uses_of_apex = {name[0] for name in names if name}
    return {name for name in uses_of_apex if not any(other.startswith(f"{name}.") for other in uses_of_apex)}


def _problem(use: Use, library: Library) -> str | None:
    """Return the fault of a use: no origin has the name, or an origin that has it refuses the call."""
    missing: list[str] = []
    others = False
    for path in sorted(use.paths):
        if path.startswith("apex"):
            others = True
            continue
        try:
            item = library.find(path)
        except MissingError as error:
            if not (use.stored and _of_our_object(path, library)):
                missing.append(str(error))
            continue
        others = True
        refused = use.call and call_problem(use.call, item, library)
        if refused:
            return f"{path}: {refused}"
    return missing[0] if missing and not others else None


def _of_our_object(path: str, library: Library) -> bool:
    """Return whether our object can have the attribute: any can, unless its class has `__setattr__`."""
    owner = library.find(path.rpartition(".")[0])
    if not isinstance(owner, Class) or not owner.instance:
        return False
    return all(
        isinstance(base, Class) and not any(getattr(node, "name", "") == "__setattr__" for node in base.node.body)
        for base in library.bases(owner)
    )


def call_problem(call: Call, item: Item, library: Library) -> str | None:
    """Return why the call fails; for an operator, one overload that accepts it is enough."""
    callee = library.constructor(item) if isinstance(item, Class) and not item.instance else item
    if isinstance(item, Module):
        return "is a module, and cannot be called"
    if not isinstance(callee, Callable):
        return None
    problems = [call.problem(signature) for signature in callee.signatures]
    if all(problems):
        return f"{problems[0]}, of {callee.signatures[0]}"
    return call.refusal(callee.node, callee.signatures[0]) if callee.node else None


def unknown_variables(strings: Iterable[tuple[str, str]], library: Library) -> dict[str, str]:
    """Return the variables and options that the library does not know, each with one place that uses it."""
    variables = {text: place for place, text in strings if VARIABLE.fullmatch(text)}
    return {text: place for text, place in sorted(variables.items()) if not library.mentions(text)}


def differences(stand_in: Path, library: Library) -> list[str]:
    """Return the names of a stand-in for torch_npu that the real one does not have, or has with another signature.

    Only public names are compared: in the package and its sub-packages, without an underscore at the beginning. The
    stand-in can have other modules inside, and can leave out optional arguments.

    Args:
        stand_in: the folder of the package.
    """
    own = Library(Sources.of_folder(stand_in.parent))
    lines = []
    for path in sorted(stand_in.rglob("__init__.py")):
        parts = path.parent.relative_to(stand_in.parent).parts
        module = own.module(".".join(parts))
        if module is not None and not any(part.startswith("_") for part in parts):
            lines += [f"{module.name}.{text}" for text in _module_differences(module, own, library)]
    return lines


def _module_differences(module: Module, own: Library, library: Library) -> Iterator[str]:
    for name in sorted(own.names(module)):
        offered = own.member(module, name)
        if isinstance(offered, Module | Opaque) or _is_torchs(offered):
            continue
        try:
            real = library.find(f"{module.name}.{name}")
        except MissingError as error:
            yield f"{name}: {error}"
            continue
        yield from _unlike(name, offered, real, own, library)


def _is_torchs(offered: Item) -> bool:
    return isinstance(offered, Class) and offered.module.name.split(".")[0] == "torch"


def _unlike(name: str, offered: Item, real: Item, own: Library, library: Library) -> Iterator[str]:
    if isinstance(real, Opaque):
        return
    if isinstance(offered, Callable) and isinstance(real, Callable):
        if not any(_within(offered.signatures[0], signature) for signature in real.signatures):
            yield f"{name}{offered.signatures[0]} is {name}{real.signatures[0]} in torch_npu"
    elif isinstance(offered, Class) and isinstance(real, Class):
        own_constructor, real_constructor = own.constructor(offered), library.constructor(real)
        if (
            own_constructor
            and real_constructor
            and not _within(own_constructor.signatures[0], real_constructor.signatures[0])
        ):
            yield f"{name}{own_constructor.signatures[0]} is {name}{real_constructor.signatures[0]} in torch_npu"
        yield from _unlike_methods(name, offered, real, own, library)
    else:
        yield f"{name} is a {type(offered).__name__.lower()}, but a {type(real).__name__.lower()} in torch_npu"


def _unlike_methods(name: str, offered: Class, real: Class, own: Library, library: Library) -> Iterator[str]:
    for node in offered.node.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        try:
            method = library.member(real, node.name)
        except MissingError:
            yield f"{name}.{node.name} is not in torch_npu"
            continue
        yield from _unlike(f"{name}.{node.name}", own.member(offered, node.name), method, own, library)


def _within(offered: inspect.Signature, real: inspect.Signature) -> bool:
    """Return whether the real function accepts each call of the offered one, with the same meaning."""
    several = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    by_place = [
        [each for each in signature.parameters.values() if each.kind in _BY_PLACE] for signature in (offered, real)
    ]
    theirs = {each.name: each for each in real.parameters.values()}
    kinds = {each.kind for each in real.parameters.values()}
    optional = (
        each.default is not inspect.Parameter.empty or each.kind in several
        for each in theirs.values()
        if each.name not in offered.parameters
    )
    return (
        [each.name for each in by_place[0]] == [each.name for each in by_place[1]][: len(by_place[0])]
        and all(_alike(each, theirs.get(each.name)) for each in offered.parameters.values() if each.kind not in several)
        and all(each.kind in kinds for each in offered.parameters.values() if each.kind in several)
        and all(optional)
    )


def _alike(offered: inspect.Parameter, real: inspect.Parameter | None) -> bool:
    return real is not None and offered.kind == real.kind and _same_default(offered.default, real.default)


def _same_default(offered: object, real: object) -> bool:
    missing = inspect.Parameter.empty
    if offered is missing or real is missing:
        return offered is real
    values = [_value(default) for default in (offered, real)]
    return values[0] == values[1] or any(value is None for value in values)


def _value(default: object) -> tuple[object] | None:
    """Return the value of a default whose text is a constant or a power; None if unknown."""
    try:
        return (_folded(ast.parse(str(default), mode="eval").body),)
    except ValueError:
        return None


def _folded(node: ast.expr) -> object:
    match node:
        case ast.BinOp(left=ast.Constant(value=base), op=ast.Pow(), right=ast.Constant(value=power)):
            return base**power  # type: ignore[operator]
    return ast.literal_eval(node)
