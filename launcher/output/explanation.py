"""The text and the JSON document of an explanation: why a job waits or failed. Pure."""

from collections.abc import Sequence
from typing import Any

from launcher import PROGRAM
from launcher.jobs import Cause, Explanation, JobState, Phase
from trainer.shared.documents import document
from trainer.shared.durations import format_duration
from trainer.shared.text import visible

_SHOWN_LINES = 5
_NOTHING_WRONG = {
    Phase.PENDING: "nothing keeps it from starting, as far as you can see: it has only just begun",
    Phase.SUSPENDED: "it is suspended",
    Phase.RUNNING: "it runs, and nothing keeps it from going on",
    Phase.SUCCEEDED: "it succeeded",
}


def explanation_text(explanation: Explanation, *, now: float, where: str) -> str:
    """Return the explanation for the user: the first cause with its evidence and the next steps, then other causes.

    Args:
        now: seconds since 1970.
        where: the options that lead to the job again.
    """
    state, causes = explanation.state, explanation.causes
    rows = [("job", f"{state.ref.name}: {_phase(state, now)}")]
    if causes:
        rows += [("why", causes[0].text), *_block("evidence", _shown(causes[0].evidence))]
        rows += _block("next", [_step(step, where) for step in causes[0].steps] or [_follow(state, where)])
        rows += _block("also", [cause.text for cause in causes[1:]])
    else:
        rows += [("why", _NOTHING_WRONG.get(state.phase, state.reason or "the reason is not known"))]
        rows += [] if state.phase.ended else [("next", _follow(state, where))]
    rows += _block("hidden", list(explanation.hidden))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {visible(text)}" for name, text in rows)


def explanation_document(explanation: Explanation) -> dict[str, Any]:
    """Return the explanation as a document of kind `Explanation`."""
    state = explanation.state
    return document(
        "Explanation",
        name=state.ref.name,
        backend=state.ref.backend,
        phase=state.phase.value,
        causes=[_cause(cause) for cause in explanation.causes],
        hidden=list(explanation.hidden),
    )


def _cause(cause: Cause) -> dict[str, Any]:
    return {"rule": cause.rule, "text": cause.text, "evidence": list(cause.evidence), "steps": list(cause.steps)}


def _block(name: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return one row for each text, the first one with the name."""
    return [("" if index else name, text) for index, text in enumerate(texts)]


def _shown(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _SHOWN_LINES
    return [*lines[:_SHOWN_LINES], *([f"and {more} more lines (--json has them)"] if more > 0 else [])]


def _step(step: str, where: str) -> str:
    """Return a step; the launcher's own commands with the options that lead to the job."""
    return f"{step}{where}" if step.startswith(PROGRAM) else step


def _follow(state: JobState, where: str) -> str:
    return f"{PROGRAM} logs {state.ref.name} -f{where}"


def _phase(state: JobState, now: float) -> str:
    since = state.started if state.phase is Phase.RUNNING else state.created
    waits = state.phase in (Phase.PENDING, Phase.SUSPENDED, Phase.RUNNING) and since is not None
    return state.phase.value + (f" for {format_duration(now - since)}" if waits and since is not None else "")
