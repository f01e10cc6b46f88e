"""The trainer's other commands: `data`, `predict`, `export`, ... Only these modules and `trainer.cli` print."""

from typing import Annotated

from cyclopts import Parameter

from trainer.shared.documents import JSON_OPTION

AsJson = Annotated[
    bool,
    Parameter(
        name=JSON_OPTION,
        negative="",
        show_default=False,
        help="Print one JSON object instead of lines, errors too (docs/json.md).",
    ),
]
