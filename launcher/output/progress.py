"""What a job's lines say about its progress: the latest step of each device, the last evaluation, result and cause.

The trainer's progress lines are words and `key=value` pairs (logfmt), so that people and programs read the same line.
The terminal display, `status` and the summary all read them here. Pure.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from launcher.output.lines import Line

Value = int | float | str

_KINDS = ("step", "eval", "result", "failed", "error")
_FIRST_WORD = re.compile(rb"(%s) " % "|".join(_KINDS).encode())
_NEWS = re.compile(_FIRST_WORD.pattern + rb"|error: ")
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf", re.IGNORECASE)
_PAIR = re.compile(r'([A-Za-z_]\w*)=("(?:[^"\\]|\\.)*"|\S*)')


@dataclass(frozen=True)
class Event:
    """One progress line. `text` is all after the first word."""

    kind: str
    fields: Mapping[str, Value]
    text: str

    def number(self, key: str) -> float | None:
        """The field as a number, or None if the line does not have it."""
        value = self.fields.get(key)
        return None if value is None or isinstance(value, str) else float(value)


def parse_event(text: bytes) -> Event | None:
    """Read a line's text as a progress line; None if it is an ordinary line."""
    if not _FIRST_WORD.match(text):
        return None
    kind, _, rest = text.decode("utf-8", "replace").strip().partition(" ")
    pairs = {} if kind == "error" else {key: _value(value) for key, value in _PAIR.findall(rest)}
    return Event(kind, pairs, rest)


def _value(text: str) -> Value:
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text.strip('"')
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


@dataclass
class Progress:
    """The latest news of a job, from its lines in order."""

    evaluation: Event | None = None
    result: Event | None = None
    failure: Event | None = None
    error: Event | None = None
    # Only the last of many step lines is ever looked at, so they are kept as they are until then.
    _steps: dict[int, bytes] = field(default_factory=dict)

    def update(self, line: Line) -> None:
        """Take note of `line`."""
        text = line.text
        if line.number is None:
            # What the trainer says before it has workers is not tagged, and only an error counts.
            if text.startswith(b"error: "):
                self.error = self.error or Event("error", {}, text[7:].decode("utf-8", "replace").strip())
        elif text.startswith(b"step "):
            if line.writer.rank is not None:
                self._steps[line.writer.rank] = text
        elif (event := parse_event(text)) is not None:
            self._note(event)

    def _note(self, event: Event) -> None:
        if event.kind == "eval":
            self.evaluation = event
        elif event.kind == "result":
            self.result = event
        elif event.kind == "failed":
            # The first one is the cause; what fails later fails because of it.
            self.failure = self.failure or event
        elif event.kind == "error":
            self.error = self.error or event

    def update_all(self, lines: Iterable[Line]) -> "Progress":
        """Take note of all `lines`; of a million there are few that say anything."""
        for line in lines:
            if _NEWS.match(line.text):
                self.update(line)
        return self

    def step(self, rank: int) -> Event | None:
        """The latest step of a rank."""
        text = self._steps.get(rank)
        return None if text is None else parse_event(text)

    @property
    def latest_step(self) -> Event | None:
        """The step that has come furthest."""
        events = [event for rank in self._steps if (event := self.step(rank)) is not None]
        return max(events, key=lambda event: (event.number("epoch") or 0, event.number("step") or 0), default=None)

    @property
    def cause(self) -> str | None:
        """Why the job failed, in one line."""
        if self.failure is not None:
            fields = self.failure.fields
            cause = fields.get("cause", self.failure.text)
            return f"rank {fields['rank']} on {fields.get('device', '?')}: {cause}" if "rank" in fields else str(cause)
        return None if self.error is None else self.error.text
