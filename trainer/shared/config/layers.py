"""Layers of settings: each value comes from the first layer that names it, and remembers which one that was.

Precedence, highest first: flag > environment > profile > checkpoint or cluster defaults > mode preset > default. The
functions here know no setting by name; they work for every pydantic model whose fields are settings.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from trainer.shared import variables
from trainer.shared.errors import UsageError
from trainer.shared.files import read_file
from trainer.shared.strict_yaml import parse_texts

Model = TypeVar("Model", bound=BaseModel)

DEFAULT_ORIGIN = "default"
"""The origin of a value that no layer sets."""


class ConfigError(UsageError):
    """A setting is unknown, has a wrong type or contradicts another one."""


@dataclass(frozen=True)
class Layer:
    """Settings from one place. `origin` completes the phrase "batch_size from ..."."""

    origin: str
    values: Mapping[str, Any]


def flag_name(field: str) -> str:
    """Return the flag of a field: `--batch-size` for `batch_size`."""
    return "--" + field.replace("_", "-")


def environment_layer(model: type[BaseModel], environ: Mapping[str, str] = os.environ) -> Layer:
    """Return the settings of `model` in `PNAS_<FIELD>` variables.

    Raises:
        UsageError: A variable is mistyped or empty.
        ConfigError: A variable's list is not YAML.
    """
    variables.check(environ)
    texts = {field: variables.read(field, environ) for field in model.model_fields}
    values = {
        field: _listed(text, place=variables.name_of(field)) if model.model_fields[field].default == () else text
        for field, text in texts.items()
        if text is not None
    }
    return Layer("environment", values)


def _listed(text: str, *, place: str) -> Any:
    """Return a setting of several texts: `[A=1, B=2]` or `{A: 1, B: 2}` as YAML, all else as one text."""
    return parse_yaml(text, place=place) if text.startswith(("[", "{")) else text


def profile_layer(name: str) -> Layer:
    """Return the settings of a YAML file, or of a profile that ships with the trainer (`seed`, `recommended`, ...).

    Raises:
        ConfigError: There is no such profile, or it is not a mapping of settings.
    """
    path, place = Path(name), f"--profile {name}"
    if path.suffix in {".yaml", ".yml"} or (path.exists() and not path.is_dir()):  # a folder `digits` is no profile
        try:
            text = read_file(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(f"{place}: cannot be read: {reason}; give the path of a YAML file") from error
    else:
        shipped = resources.files("trainer.shared.config") / "profiles"
        known = sorted(entry.name.removesuffix(".yaml") for entry in shipped.iterdir() if entry.name.endswith(".yaml"))
        if name not in known:
            raise ConfigError(
                f"{place}: no such file or shipped profile; shipped are {', '.join(known)}{_did_you_mean(name, known)}"
            )
        text = (shipped / f"{name}.yaml").read_text(encoding="utf-8")
    return Layer(f"profile {name}", by_field_name(_settings_of(parse_yaml(text, place=place)), place=place))


def _settings_of(document: Any) -> Any:
    """Return the settings that were set of a document of kind Config, as `config show --json` prints it."""
    match document:
        case {"apiVersion": str(), "kind": "Config", "settings": dict(settings)}:
            return {
                name: entry.get("value")
                for name, entry in settings.items()
                if isinstance(entry, dict) and entry.get("set") == "true"
            }
    return document


def by_field_name(values: Any, *, place: str) -> dict[str, Any]:
    """Return settings from YAML under the names of fields: `batch-size` is `batch_size`. An empty text means none.

    Raises:
        ConfigError: The value is not a mapping, or names a setting in both ways.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: must be a mapping like `batch_size: 32`, not a {type(values).__name__}")
    settings: dict[str, Any] = {}
    for key, value in values.items():
        field = str(key).replace("-", "_")
        if field in settings:
            raise ConfigError(f"{place}: `{field}` is given twice, as `{flag_name(field)[2:]}` too")
        settings[field] = value
    return settings


def parse_yaml(text: str, *, place: str) -> Any:
    """Read YAML; each plain value is its text, as on the command line.

    Raises:
        ConfigError: The text is not valid YAML.
    """
    try:
        return parse_texts(text)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error


PARTIAL = "partial"
_LONGEST = 200
"""Characters of a value in a message."""
_LONGEST_BITS = 63  # of a whole number: a larger one overflows in torch, numpy, JSON readers and Kubernetes


def resolve(model: type[Model], layers: Sequence[Layer], *, partial: bool = False) -> tuple[Model, dict[str, str]]:
    """Build `model` from `layers`, highest precedence first; also return the origin of each field's value.

    Args:
        partial: A layer is still missing, so the model can skip the rules between settings (it finds PARTIAL in the
            validation's context).

    Raises:
        ConfigError: One line that names the setting, the layer it came from and the rule it breaks.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(model.model_fields, DEFAULT_ORIGIN)
    for layer in reversed(layers):
        for field, value in layer.values.items():
            if field not in model.model_fields:
                known = list(model.model_fields)
                raise ConfigError(f"unknown setting `{field}` in {layer.origin}{_did_you_mean(field, known)}")
            values[field] = value
            origins[field] = layer.origin
    empty = next((field for field, value in values.items() if value == ""), None)
    if empty is not None:
        raise ConfigError(f"{flag_name(empty)}{_from(origins[empty])}: is empty; give a value, or leave it out")
    cut = next((field for field, value in values.items() if isinstance(value, str) and "\0" in value), None)
    if cut is not None:  # no path and no argument of a process can have one
        raise ConfigError(f"{flag_name(cut)}{_from(origins[cut])}: has a NUL character; leave it out")
    try:
        settings = model.model_validate(values, context={PARTIAL: True} if partial else None)
    except UnicodeEncodeError as error:  # pydantic cannot take the message of a rule that quotes such a text
        field = next(name for name, value in values.items() if any(map(error.object.__contains__, _half_texts(value))))
        raise ConfigError(f"{flag_name(field)}{_from(origins[field])}: is not UTF-8 text") from error
    except ValidationError as error:
        problems: dict[str, list[Any]] = {}
        for problem in error.errors(include_url=False):
            problems.setdefault(str(next(iter(problem["loc"]), "")), []).append(problem)
        texts = (_describe(field, broken, origins) for field, broken in problems.items())
        raise ConfigError("; ".join(texts)) from None
    numbers = {field: value for field, value in settings if isinstance(value, int)}
    if huge := next((field for field, value in numbers.items() if value.bit_length() > _LONGEST_BITS), None):
        raise ConfigError(f"{flag_name(huge)}{_from(origins[huge])}: is too large")
    return settings, origins


def _half_texts(value: Any) -> list[str]:
    """Return the texts of a setting that hold bytes which are not UTF-8."""
    texts = value if isinstance(value, list | tuple) else [value]
    return [text for text in texts if isinstance(text, str) and re.search("[\ud800-\udfff]", text)]


# Plainer than pydantic's own words about a text that has another type.
_PLAIN = {
    **dict.fromkeys(("int_parsing", "int_type"), "is not a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "is not a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
}


def _describe(field: str, problems: Sequence[Mapping[str, Any]], origins: Mapping[str, str]) -> str:
    """Return the broken rules of one setting, with the setting and its origin; a rule between settings names them."""
    rules = [_rule(problem) for problem in problems]
    if not field:
        return "; ".join(rules)
    if problems[0]["input"] is None:
        return f"{flag_name(field)}{_from(origins[field])}: is empty; give a value, or leave it out"
    # A setting of several types has a problem with each: `is not a number or 'dynamic'`.
    first, *others = (f"{rule[:1].lower()}{rule[1:]}" for rule in dict.fromkeys(rules))
    rule = " or ".join([first, *(other.removeprefix("input should be ") for other in others)])
    return f"{flag_name(field)}{_shown(problems[0]['input'])}{_from(origins.get(field, DEFAULT_ORIGIN))}: {rule}"


def _rule(problem: Mapping[str, Any]) -> str:
    if isinstance(problem["input"], list | dict) and problem["type"] != "value_error":
        return f"is a {'list' if isinstance(problem['input'], list) else 'mapping'}; give one value"
    return _PLAIN.get(problem["type"]) or str(problem["msg"]).removeprefix("Value error, ")


def _shown(value: Any) -> str:
    """Return a value for a message: of NAME=VALUE only the name, because the value can be a secret."""
    if isinstance(value, list | tuple | dict):
        names = " ".join(name for item in value if isinstance(item, str) and (name := item.partition("=")[0]))
        return f" {names[:_LONGEST]}" if names else ""
    name, equals, _ = str(value).partition("=")
    return f" {name}=…" if equals else f" {name[:_LONGEST]}"


def _from(origin: str) -> str:
    return "" if origin == "flag" else f" (from {origin})"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
