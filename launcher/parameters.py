"""The parameters that several commands share, so that a job, a backend or `--json` is the same wherever it is typed."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from launcher.report import PROGRAM


def flag(text: str, **more: Any) -> Parameter:
    """A switch that is off unless it is typed; there is no `--no-` form of it."""
    return Parameter(help=text, negative="", show_default=False, **more)


def count(_type: Any, tokens: Sequence[Token]) -> int:
    """Read a number of things; cyclopts alone would round 1.5 to 2."""
    text = tokens[0].value
    if not text.isdecimal():
        raise ValueError(f'"{text}" is not a whole number of 0 or more')
    return int(text)


def examples(*commands: str) -> str:
    """The end of a help page."""
    return "Examples:\n" + "\n".join(f"  {PROGRAM} {command}" for command in commands)


Where = Annotated[Literal["auto", "local"], Parameter(name="--backend", help="Where the job is.", show_default=False)]
LatestName = Annotated[str | None, Parameter(help="The job. [default: the latest]", show_default=False)]
JobName = Annotated[str, Parameter(help="The job.")]
Json = Annotated[bool, flag("Print JSON (apiVersion pnas/v1).", name="--json")]
Profile = Annotated[
    str | None, Parameter(help="Settings from a YAML file, or seed, recommended or digits.", group="Job")
]
