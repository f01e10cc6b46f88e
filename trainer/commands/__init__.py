"""The trainer's other commands: `data`, `env`, `inspect`, `ranktable`. Only these modules and `trainer.cli` print."""

from typing import Annotated

from cyclopts import Parameter

AsJson = Annotated[
    bool,
    Parameter(name="--json", negative="", show_default=False, help="Print one JSON object instead of lines."),
]
