"""Why a job failed, as its log tells: known errors of devices, and the words of the rank that failed first. Pure."""

from collections.abc import Iterable, Iterator

from launcher.jobs import Cause
from launcher.output.lines import LogLine
from trainer.shared.device_errors import DeviceError, find_device_error

_SHOWN_CHARACTERS = 300
_SHOWN_RANKS = 3
_RESTART = b"restart attempt="
# A line of progress has numbers that are no codes.
_PROGRESS = (b"step ", b"eval ", b"progress ", b"time ", b"result ")


def of_last_attempt(lines: Iterable[LogLine]) -> list[LogLine]:
    """Return the lines of one log from its supervisor's last restart of the workers on: what came before is over."""
    last: list[LogLine] = []
    for line in lines:
        if line.writer.node is not None and line.text.startswith(_RESTART):
            last.clear()
        last.append(line)
    return last


def log_causes(words: Cause | None, lines: Iterable[LogLine]) -> Iterator[Cause]:
    """Yield what a log tells of a failure; an error that only follows from another rank's comes last.

    Args:
        words: the cause that has the words of the rank that failed first; left out if a known error says the same.
        lines: the end of the log, of its last attempt.
    """
    found: dict[tuple[DeviceError, str], dict[str, LogLine]] = {}
    for line in lines:
        if not line.text.startswith(_PROGRESS) and (known := find_device_error(line.text.decode("utf-8", "replace"))):
            found.setdefault(known, {}).setdefault(line.writer.source, line)
    errors = [(error.secondary, _device_error(error, text, list(of.values()))) for (error, text), of in found.items()]
    yield from (cause for secondary, cause in errors if not secondary)
    if words is not None and not any(text in words.text for _, text in found):
        yield words
    yield from (cause for secondary, cause in errors if secondary)


def _device_error(error: DeviceError, text: str, lines: list[LogLine]) -> Cause:
    writer = lines[0].writer
    place = f"rank {writer.rank} on {writer.device}: " if writer.rank is not None else ""
    others = [f"rank {line.writer.rank}" for line in lines[1:] if line.writer.rank is not None]
    more = " and others" if len(others) > _SHOWN_RANKS else ""
    also = f"; {', '.join(others[:_SHOWN_RANKS])}{more} too" if others else ""
    shown = lines[0].shown.decode("utf-8", "replace").strip()
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"
    return Cause("device-error", f"{place}{text}{also}", (shown, f"source: {error.source}"), (error.step,))
