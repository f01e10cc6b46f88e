"""The generated page docs/options.md: every option, from the models that define them."""

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from docs.formats import table
from launcher.cli import app as launcher_app
from launcher.commands import COMMANDS
from launcher.errors import MEANINGS
from launcher.settings.options import PLACE, JobOptions
from trainer.shared.config import MODE_PRESETS, TrainConfig
from trainer.shared.config.layers import flag_name
from trainer.shared.variables import PREFIX, SETTING_NAMES

PAGE = Path(__file__).with_name("options.md")
PROFILES = ("seed", "recommended", "digits")

_INTRODUCTION = f"""\
# Options

`make generate` writes this page. It lists every setting, and below them the launcher's options that are no settings.
`python -m trainer` and `python -m launcher submit` take the same settings, with two differences: the options of Job,
Cluster and Pods belong to the launcher, and the launcher sets `--run-name` to the name of the job. Each setting is also
a line of a profile (`batch_size: 64`, read by `--profile FILE`) and a variable (`{PREFIX}BATCH_SIZE=64`). Precedence:
flag > environment > profile > cluster defaults > mode or hardware > default. `python -m launcher config show` prints
each value with its origin. The `--no-` form of a switch turns it off.

A value is the text that you type, in a profile and in a variable too: `run_name: 1.10` and `2024-11-01` stay so, and
`010` is ten. `none` unsets a setting. A setting that may be repeated is a list or a mapping in a profile and in a
variable: `PNAS_ENV='[A=1, B=2]'`. `PNAS_PROFILE` names a profile. An unknown line of a profile, a line that stands
there twice, and an unknown variable that begins with `{PREFIX}` are errors.
"""


def files() -> dict[Path, str]:
    """Return the text of the page, and the list of names that programs read without the models."""
    names = sorted({*JobOptions.model_fields, *TrainConfig.model_fields})
    page = "\n".join([*_options(), *_modes(), *_profiles(), *_commands(), *_exit_codes()])
    return {PAGE: page, SETTING_NAMES: "".join(f"{name}\n" for name in names)}


def _options() -> Iterator[str]:
    yield _INTRODUCTION
    groups: dict[str, list[tuple[str, FieldInfo]]] = {}
    for model in (JobOptions, TrainConfig):
        for name, field in model.model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict)
            groups.setdefault(str(extra["group"]), []).append((name, field))
    for group, fields in groups.items():
        rows = [(f"`{flag_name(name)}`", *describe(field)) for name, field in fields]
        yield from table(f"## {group}", ("option", "values", "default", "meaning"), rows)


def describe(field: FieldInfo) -> tuple[str, str, str]:
    """Return a setting's possible values, its default and its meaning."""
    return _values(field), _default(field), _text(field)


def _commands() -> Iterator[str]:
    """Yield the launcher's options that are no settings, and so neither lines of a profile nor variables."""
    rows = []
    for entry in COMMANDS:
        app = launcher_app[entry.name]
        for name, command in ((f"{entry.name} show", app["show"]),) if entry.name == "config" else ((entry.name, app),):
            arguments = {argument.names[0]: argument for argument in command.assemble_argument_collection()}
            settings = JobOptions.model_fields.keys() | TrainConfig.model_fields.keys()
            others = settings if "--model" in arguments else PLACE | {"backend"}
            rows += [
                (f"`{name}`", ", ".join(f"`{option}`" for option in argument.names), argument.parameter.help or "")
                for option, argument in arguments.items()
                if option.startswith("--") and option not in map(flag_name, others)
            ]
    yield from table("## Options of the launcher that are no settings", ("command", "option", "meaning"), rows)
    yield "The trainer also has `--profile` and `--dry-run`. `python -m trainer COMMAND --help` shows the others.\n"


def _modes() -> Iterator[str]:
    rows = [(f"`--mode {mode}`", _settings(values)) for mode, values in MODE_PRESETS.items()]
    yield from table("## What a mode sets", ("mode", "settings"), rows)


def _profiles() -> Iterator[str]:
    values = {name: yaml.safe_load(_shipped(name)) for name in PROFILES}
    rows = [
        (f"`{name}`", *(_word(values[profile].get(name, "")) for profile in PROFILES))
        for name in TrainConfig.model_fields
        if any(name in values[profile] for profile in PROFILES)
    ]
    heads = ("setting", *(f"`--profile {name}`" for name in PROFILES))
    yield from table("## What a profile sets", heads, rows)


def _exit_codes() -> Iterator[str]:
    rows = [(str(code.value), text) for code, text in MEANINGS.items()]
    yield from table("## Exit codes of the launcher", ("code", "meaning"), rows)
    yield (
        "The trainer's exit codes 0, 1, 2, 6 and 141 have the same meaning. "
        "75 means stopped and resumable, 130 means interrupted.\n"
    )


def _values(field: FieldInfo) -> str:
    """Return `seed, tf`, `int ≥ 1` or `path`."""
    choices = [str(word) for part in _parts(field.annotation) if get_origin(part) is Literal for word in get_args(part)]
    kinds = [
        part.__name__.lower() for part in _parts(field.annotation) if isinstance(part, type) and part is not type(None)
    ]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {limit}"
        for rule in _rules(field)
        for name, sign in signs.items()
        if (limit := getattr(rule, name, None)) is not None
    ]
    kind = {"bool": "switch", "str": "text"}
    return ", ".join([*choices, *(" ".join([kind.get(name, name), *limits]) for name in kinds)])


def _parts(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a setting can have, without their rules."""
    if get_origin(annotation) is Literal or isinstance(annotation, type):
        return (annotation,)
    return tuple(get_args(part)[0] if get_origin(part) is Annotated else part for part in get_args(annotation))


def _rules(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    for part in get_args(field.annotation):
        if get_origin(part) is Annotated:
            yield from (rule for extra in get_args(part)[1:] for rule in extra.metadata)


def _default(field: FieldInfo) -> str:
    text = (field.description or "").partition("[default: ")[2].rstrip("]")
    return text or ("" if field.default is None else _word(field.default))


def _text(field: FieldInfo) -> str:
    return (field.description or "").partition(" [default")[0]


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}: {_word(value)}`" for name, value in values.items())


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shipped(profile: str) -> str:
    return (resources.files("trainer.shared.config") / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8")
