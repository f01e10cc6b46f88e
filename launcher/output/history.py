"""The attempts of a job's run, as the lines `attempt n=3 ...` of its log tell of them. Pure.

A trainer begins with such a line for each attempt of its run, also of other jobs, and prints another when its own ends.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.jobs import JobState, LogBlock, LogItem
from launcher.output.lines import parse_lines
from launcher.output.progress import Value, parse_pairs
from launcher.output.report import columns
from trainer.shared.documents import document
from trainer.shared.durations import format_duration

_MARK = b"attempt n="
_NUMBERS = ("n", "nodes", "gap_s", "steps", "rank")
_TEXTS = ("host", "node", "started", "ended", "from", "outcome", "cause")
_KEYS = {"n": "attempt", "gap_s": "gapS"}
_TITLES = ("ATTEMPT", "NODE", "STARTED", "ENDED", "FROM", "GAP", "STEPS", "END")


def read_history(log: Iterable[LogItem], state: JobState) -> list[dict[str, Any]]:
    """Return the fields of each attempt of which the log tells, oldest first; the latest line about each counts.

    A pod's own end, as the cluster knows it, is the cause if the trainer could not tell one.
    """
    attempts: dict[int, dict[str, Any]] = {}
    for item in log:
        if isinstance(item, LogBlock) and _MARK in item.data:
            for line in parse_lines(item.data):
                if line.writer.node is not None and line.text.startswith(_MARK):
                    fields = parse_pairs(line.text.decode("utf-8", "replace"))
                    if isinstance(number := fields.get("n"), int):
                        attempts[number] = {name: _number(fields.get(name)) for name in _NUMBERS} | {
                            name: None if name not in fields else str(fields[name]) for name in _TEXTS
                        }
    pods = {pod["name"]: pod for pod in state.details.get("pods", ())}
    for number, attempt in attempts.items():
        pod = pods.get(attempt["host"], {})
        attempt["node"] = attempt["node"] or pod.get("node")
        ended = attempt["outcome"] is not None or number < max(attempts) or state.phase.ended
        if attempt["outcome"] in {None, "lost"} and ended:
            attempt |= {"outcome": "lost", "cause": pod.get("ended") or attempt["cause"]}
    return [attempts[number] for number in sorted(attempts)]


def history_document(state: JobState, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the attempts as a document of kind `JobHistory`."""
    items = [{_KEYS.get(name, name): value for name, value in one.items()} for one in attempts]
    return document("JobHistory", name=state.ref.name, backend=state.ref.backend, items=items)


def history_text(attempts: Sequence[Mapping[str, Any]]) -> str:
    """Return one line per attempt."""
    return columns([_TITLES, *map(_row, attempts)])


def _number(value: Value | None) -> int | float | None:
    """Return a number; None for other words, which a line of a log can have in its place."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _row(attempt: Mapping[str, Any]) -> tuple[str, ...]:
    gap_s, rank = attempt["gap_s"], attempt["rank"]
    place = "" if rank is None else f"rank {rank}: "
    words = [] if attempt["cause"] is None else [f"{place}{attempt['cause']}"]
    return (
        str(attempt["n"]),
        str(attempt["node"] or attempt["host"] or "-"),
        str(attempt["started"] or "-"),
        str(attempt["ended"] or "-"),
        str(attempt["from"] or "the beginning"),
        "-" if gap_s is None else format_duration(gap_s),
        str("-" if attempt["steps"] is None else attempt["steps"]),
        ": ".join([str(attempt["outcome"] or "running"), *words]),
    )
