"""A pydantic model's fields as command-line options, so that one definition gives the command line and its help.

Each option is optional and has no default here: only typed options reach the layers, which decide precedence and
origins.
"""

import functools
import inspect
from collections.abc import Callable, Sequence, Set
from typing import Annotated, Any, Literal, Optional, TypeVar, cast, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.shared.config.layers import flag_name
from trainer.shared.program import COMMAND_LINE

Command = TypeVar("Command", bound=Callable[..., Any])

PROFILE_HELP = "Settings from a YAML file, or seed, recommended or digits."


class _Command:
    """A command with many options, of which its signature has only those on the program's command line.

    cyclopts takes 0.2 ms for each option of a command that it parses, typed or not: a tenth of a start.
    """

    def __init__(
        self, command: Callable[..., Any], before: Sequence[inspect.Parameter], after: Sequence[inspect.Parameter]
    ) -> None:
        functools.update_wrapper(self, command)
        self._command = command
        own = inspect.signature(command).parameters.values()
        self._own = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        self._before, self._after = before, after

    def __call__(self, *values: Any, **options: Any) -> Any:
        return self._command(*values, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        words = COMMAND_LINE.get()
        typed = {word.partition("=")[0][2:].replace("-", "_") for word in words or () if word.startswith("-")}
        # Another word is one of the command's own options, `--no-`, mistyped, or asks for the help page.
        every = words is None or not typed <= {parameter.name for parameter in (*self._before, *self._after)}
        before, after = (
            [parameter for parameter in parameters if every or parameter.name in typed]
            for parameters in (self._before, self._after)
        )
        return inspect.Signature([*before, *self._own, *after])


def take_options(
    command: Command, *, before: Sequence[inspect.Parameter] = (), after: Sequence[inspect.Parameter]
) -> Command:
    """Replace the command's `**options` by these parameters, before and after its own ones."""
    return cast("Command", _Command(command, before, after))


def option_parameters(
    model: type[BaseModel], *, exclude: frozenset[str] = frozenset(), shown: Set[str] | None = None
) -> list[inspect.Parameter]:
    """Return keyword-only parameters, one for each field of `model`, for a cyclopts command's signature.

    Args:
        shown: The fields that the help page shows; all of them if None.
    """
    groups: dict[str, Group] = {}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _annotation(field),
                Parameter(
                    name=flag_name(name),
                    help=_help(field),
                    group=_group(field, groups),
                    show=None if shown is None else name in shown,
                    show_default=False,
                    negative="" if isinstance(field.default, tuple) else None,
                ),
            ],
        )
        for name, field in model.model_fields.items()
        if name not in exclude
    ]


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return only the options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def _annotation(field: FieldInfo) -> Any:
    """Return the option's type for cyclopts: a switch, a list, one of a few words, or a text.

    The model reads the text, as it reads the texts of the environment and of a profile. `none` unsets a setting that
    can be absent, so that a flag can undo a profile.
    """
    if field.annotation is bool or isinstance(field.default, tuple):
        return Optional[field.annotation]  # noqa: UP045  # a type expression built at run time
    if choices := _choices(field):
        return Literal[choices] | None
    return str | None


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words of a setting that is one of a few words, or absent; empty for other settings."""
    if get_origin(field.annotation) is Literal:
        return get_args(field.annotation)
    [first, *others] = get_args(field.annotation) or (None,)
    return (*get_args(first), "none") if get_origin(first) is Literal and others == [type(None)] else ()


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.default in (None, ()) or "[default" in text:
        return text
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return f"{text} [default: {default}]"


def _group(field: FieldInfo, groups: dict[str, Group]) -> Group:
    extra = field.json_schema_extra
    name = str(extra["group"]) if isinstance(extra, dict) else "Options"
    return groups.setdefault(name, Group.create_ordered(name))
