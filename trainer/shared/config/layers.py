"""Layers of settings: each value comes from the first layer that names it, and remembers which one that was.

Precedence, highest first: flag > environment > profile > checkpoint or cluster defaults > mode preset > default. The
functions here know no setting by name; they work for every pydantic model whose fields are settings.
"""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from trainer.shared.errors import UsageError

ENVIRONMENT_PREFIX = "PNAS_"

Model = TypeVar("Model", bound=BaseModel)


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
    """Return the `PNAS_<FIELD>` variables that name a field of `model`; other programs own the others.

    Raises:
        ConfigError: A variable's text is not YAML.
    """
    variables = {field: ENVIRONMENT_PREFIX + field.upper() for field in model.model_fields}
    values = {
        field: parse_yaml(environ[variable], place=f"{variable}={environ[variable]}")
        for field, variable in variables.items()
        if variable in environ
    }
    return Layer("environment", values)


def profile_layer(name: str) -> Layer:
    """Return the settings of a YAML file, or of a profile that ships with the trainer (`seed`, `recommended`, ...).

    Raises:
        ConfigError: There is no such profile, or it is not a mapping of settings.
    """
    path, place = Path(name), f"--profile {name}"
    if path.suffix in {".yaml", ".yml"} or path.exists():
        try:
            text = path.read_text(encoding="utf-8")
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
    return Layer(f"profile {name}", by_field_name(parse_yaml(text, place=place), place=place))


def by_field_name(values: Any, *, place: str) -> dict[str, Any]:
    """Return settings from YAML under the names of fields: `batch-size` is `batch_size`. An empty text means none.

    Raises:
        ConfigError: The value is not a mapping.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: must be a mapping like `batch_size: 32`, not a {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def parse_yaml(text: str, *, place: str) -> Any:
    """Read YAML.

    Raises:
        ConfigError: The text is not valid YAML.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # an impossible date raises ValueError
        raise ConfigError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error


PARTIAL = "partial"


def resolve(model: type[Model], layers: Sequence[Layer], *, partial: bool = False) -> tuple[Model, dict[str, str]]:
    """Build `model` from `layers`, highest precedence first; also return the origin of each field's value.

    Args:
        partial: A layer is still missing, so the model can skip the rules between settings (it finds PARTIAL in the
            validation's context).

    Raises:
        ConfigError: One line that names the setting, the layer it came from and the rule it breaks.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(model.model_fields, "default")
    for layer in reversed(layers):
        for field, value in layer.values.items():
            if field not in model.model_fields:
                known = list(model.model_fields)
                raise ConfigError(f"unknown setting `{field}` in {layer.origin}{_did_you_mean(field, known)}")
            values[field] = value
            origins[field] = layer.origin
    try:
        return model.model_validate(values, context={PARTIAL: True} if partial else None), origins
    except ValidationError as error:
        problems = (_describe(problem, origins) for problem in error.errors(include_url=False))
        raise ConfigError("; ".join(problems)) from None


def _describe(problem: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return one broken rule, with its setting and the setting's origin."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    field = str(problem["loc"][0])
    origin = origins.get(field, "default")
    place = "" if origin == "flag" else f" (from {origin})"
    value = problem["input"]
    # Show only the name of NAME=VALUE: the value can be a secret.
    text = value
    if isinstance(value, list | tuple | dict):
        text = " ".join(str(item).partition("=")[0] for item in value)
    elif isinstance(value, str) and "=" in value:
        text = value.partition("=")[0] + "=…"
    return f"{flag_name(field)} {text}{place}: {message[:1].lower()}{message[1:]}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
