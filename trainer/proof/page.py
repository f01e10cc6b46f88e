"""The page of a proof: `page.py PROOF.json` writes PROOF.html next to it, to keep and to send.

A separate program: a command line must not wait for the import of templates. It reads only the document, which has no
secrets any more.
"""

import json
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.proof.catalogue import CHECKS
from trainer.shared.errors import TrainerError
from trainer.shared.files import own_partial, reading, replacing, writing
from trainer.shared.pages import page_template
from trainer.shared.program import say_error
from trainer.shared.text import visible

_TEMPLATE = Path(__file__).parent / "templates/proof.html.j2"
VERDICTS = ("failed", "unfinished", "passed", "impossible")
"""In the order of the page: first what a reader must act on."""


@dataclass(frozen=True)
class OutcomeRow:
    """One outcome of a check, and all places that have it."""

    check: str
    about: str
    verdict: str
    places: str
    measured: str
    expected: str
    advice: str


@dataclass(frozen=True)
class FigureValue:
    """A place's value of a figure, compared with all values."""

    place: str
    value: str
    share: float
    """Of the largest value, in percent."""
    difference: str
    """From the median; empty where there is one value."""


@dataclass(frozen=True)
class Figure:
    """One figure of a check at all places of the same size."""

    name: str
    values: Sequence[FigureValue]


def main() -> int:
    """Write the page of the document in the command line; return the exit code."""
    path = Path(sys.argv[1])
    try:
        with reading(path):
            proof = json.loads(path.read_bytes())
        page = path.with_suffix(".html")
        with writing(page), replacing(page, partial=own_partial(page)) as partial:
            partial.write_text(proof_page(proof), encoding="utf-8")
    except TrainerError as error:
        say_error(visible(f"error: {error}"))
        return error.exit_code
    return 0


def proof_page(proof: Mapping[str, Any]) -> str:
    """Return the page of a document of kind Proof."""
    verdicts = list(_verdicts(proof["results"]))
    figures = list(_figures(proof["results"]))
    counts = {name: sum(result["outcome"]["verdict"] == name for result in proof["results"]) for name in VERDICTS}
    return page_template(_TEMPLATE).render(
        made_by="pnas prove",
        title=f"Proof of {proof['host']}",
        proof=proof,
        models=_models(proof["deviceNames"]),
        counts=counts,
        verdicts={name: [verdict for verdict in verdicts if verdict.verdict == name] for name in VERDICTS},
        compared=[figure for figure in figures if len(figure.values) > 1],
        others=[figure for figure in figures if len(figure.values) == 1],
        environment=list(_flat(proof["environment"])),
    )


def _models(names: Mapping[str, str]) -> dict[str, str]:
    """Return the devices of each model."""
    return {model: _listed([place for place in names if names[place] == model]) for model in names.values()}


def _listed(places: Sequence[str]) -> str:
    return ", ".join(sorted(places, key=_order))


def _order(place: str) -> tuple[list[int], str]:
    """Return what places are sorted by: `npu:2` comes before `npu:10`."""
    return [int(number) for number in re.findall(r"[0-9]{1,9}", place)], place


def _verdicts(results: Sequence[Mapping[str, Any]]) -> Iterator[OutcomeRow]:
    """Yield the outcomes of each check; equal ones of several places are one."""
    abouts = {check.name: check.about for check in CHECKS}
    places: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        outcome = result["outcome"]
        key = (result["check"], *(outcome[name] for name in ("verdict", "measured", "expected", "advice")))
        places.setdefault(key, []).append(result["place"])
    for (check, verdict, measured, expected, advice), own in places.items():
        yield OutcomeRow(check, abouts.get(check, ""), verdict, _listed(own), measured, expected, advice)


def _figures(results: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """Yield each figure with its values at all places."""
    values: dict[str, list[tuple[str, float]]] = {}
    for result in results:
        for name, value in result["outcome"]["figures"].items():
            values.setdefault(f"{result['check']}: {name}", []).append((result["place"], value))
    for name, own in values.items():
        numbers = [value for _, value in own]
        median, largest = statistics.median(numbers), max(map(abs, numbers))
        yield Figure(
            name,
            [
                FigureValue(
                    place,
                    f"{value:.4g}",
                    round(100 * abs(value) / largest, 1) if largest else 0.0,
                    f"{100 * (value / median - 1):+.1f} %" if median and len(own) > 1 else "",
                )
                for place, value in sorted(own, key=lambda pair: _order(pair[0]))
            ],
        )


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the facts of a nested object, each with its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name} {key}".strip())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{name} {number}")
    elif isinstance(value, list):
        yield name, shlex.join(map(str, value)) or "none"
    else:
        yield name, "none" if value is None else str(value)
