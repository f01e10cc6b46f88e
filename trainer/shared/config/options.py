"""A pydantic model's fields as command-line options, so that one definition gives the command line and its help.

Each option is optional and has no default here: only typed options reach the layers, which decide precedence and
origins.
"""

import inspect
from collections.abc import Callable, Sequence, Set
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from cyclopts import Group, Parameter, Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.shared.config.layers import flag_name

Command = TypeVar("Command", bound=Callable[..., Any])

PROFILE_HELP = "Settings from a YAML file, or seed, recommended or digits."


def take_options(
    command: Command, *, before: Sequence[inspect.Parameter] = (), after: Sequence[inspect.Parameter]
) -> Command:
    """Replace the command's `**options` by these parameters, before and after its own ones."""
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    command.__dict__["__signature__"] = inspect.Signature([*before, *own, *after])
    return command


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
                    show_choices=not _nullable(field) or bool(_choices(field)),
                    converter=None if _has_choices(field) else as_typed,
                ),
            ],
        )
        for name, field in model.model_fields.items()
        if name not in exclude
    ]


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return only the options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def as_typed(_type: Any, tokens: Sequence[Token]) -> str:
    """Return an option's text. The model reads it, as it reads the texts of the environment and of a profile."""
    return tokens[0].value


def _annotation(field: FieldInfo) -> Any:
    """Return the option's type; `none` unsets a setting that can be absent, so that a flag can undo a profile."""
    if choices := _choices(field):
        # One list with all words: about a wrong word in a union, cyclopts only says that it has neither type.
        return Literal[(*choices, "none")] | None
    word = Literal["none"] if _nullable(field) else None
    return Union[field.annotation, word, None]  # noqa: UP007  # a type expression built at run time


def _has_choices(field: FieldInfo) -> bool:
    """Return whether cyclopts must read the option: a switch, one of a few words, or a list."""
    return field.annotation is bool or isinstance(field.default, tuple) or bool(_choices(field)) or _is_word(field)


def _is_word(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal


def _nullable(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words of a setting that is one of a few words or absent."""
    [first, *others] = get_args(field.annotation) or (None,)
    return get_args(first) if get_origin(first) is Literal and others == [type(None)] else ()


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
