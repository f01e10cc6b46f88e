"""Calls and signatures as plain values, and whether a call fits a signature."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

UNKNOWN = object()
"""An argument whose value is known only at run time."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Call:
    """The arguments of a call, constants by their value; `open_ended` if it also unpacks unknown arguments."""

    positional: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()
    open_ended: bool = False

    @classmethod
    def of(cls, node: ast.Call) -> "Call":
        """Return the arguments of `node`."""
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        return cls(
            tuple(_constant(argument) for argument in node.args if not isinstance(argument, ast.Starred)),
            tuple((keyword.arg, _constant(keyword.value)) for keyword in node.keywords if keyword.arg is not None),
            open_ended=starred or any(keyword.arg is None for keyword in node.keywords),
        )

    def problem(self, signature: inspect.Signature) -> str | None:
        """Return why a function of this signature refuses the call, in Python's words; None if it does not."""
        bind = signature.bind_partial if self.open_ended else signature.bind
        try:
            bind(*self.positional, **dict(self.keywords))
        except TypeError as error:
            return str(error)
        return None

    def refusal(self, function: Function, signature: inspect.Signature) -> str | None:
        """Return the argument at which the function raises: `if set_to_none: raise ...` refuses a true constant."""
        bound = signature.bind_partial(*self.positional, **dict(self.keywords)).arguments
        for name in _raises_if_true(function):
            value = bound.get(name, UNKNOWN)
            if value is not UNKNOWN and value:
                return f"it raises an error at {name}={value!r}"
        return None


def signature_of(function: Function, *, bound: bool) -> inspect.Signature:
    """Return the signature of a function's source, without its first parameter if that is bound.

    Defaults are the text of their source, not its value.
    """
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = len(positional) - len(arguments.defaults)
    defaults = [inspect.Parameter.empty] * missing + [ast.unparse(default) for default in arguments.defaults]
    parameters = []
    for number, (argument, default) in enumerate(zip(positional, defaults, strict=True)):
        only = number < len(arguments.posonlyargs)
        kind = inspect.Parameter.POSITIONAL_ONLY if only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(inspect.Parameter(argument.arg, kind, default=default))
    if arguments.vararg:
        parameters.append(inspect.Parameter(arguments.vararg.arg, inspect.Parameter.VAR_POSITIONAL))
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        default = inspect.Parameter.empty if value is None else ast.unparse(value)
        parameters.append(inspect.Parameter(argument.arg, inspect.Parameter.KEYWORD_ONLY, default=default))
    if arguments.kwarg:
        parameters.append(inspect.Parameter(arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters[1:] if bound and positional else parameters)


def signature_of_schema(text: str) -> inspect.Signature:
    """Return the signature of an operator from its schema, by torch's own parser."""
    import torch

    schema = torch._C.parse_schema(text)
    return inspect.Signature(
        [
            inspect.Parameter(
                argument.name,
                inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=argument.default_value if argument.has_default_value() else inspect.Parameter.empty,
            )
            for argument in schema.arguments
        ]
    )


def _constant(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else UNKNOWN


def _raises_if_true(function: Function) -> Iterator[str]:
    for statement in function.body:
        match statement:
            case ast.If(test=ast.Name(id=name), body=[*steps]) if any(isinstance(step, ast.Raise) for step in steps):
                yield name
