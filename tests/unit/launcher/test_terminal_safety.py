"""The lines of a job are data: none of their control characters reaches a terminal, and a pipe gets every byte."""

import io
import json
import os
import pty
import re
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from launcher.errors import LauncherError
from launcher.exits import run_command
from launcher.jobs import JobEvent, JobRef, JobState, LogBlock, LogItem, LogLoss, Notice, Phase
from launcher.output import report
from launcher.output.display import PlainDisplay
from launcher.output.follow import LogFollow
from launcher.output.live import LiveDisplay, live_display
from launcher.output.progress import JobProgress
from trainer.shared.text import visible

ATTACKS = {
    "title": b"\x1b]0;owned\x07",
    "clipboard": b"\x1b]52;c;b3duZWQ=\x07",
    "reset": b"\x1bc",
    "cursor": b"\x1b[2J\x1b[1;1H",
    "carriage return": b"secret\rpublic",
    "8-bit": "\x9b2J\x9d0;owned\x9c".encode(),
    "not text": b"\xff\xfe\x9b2J",
    "null": b"a\x00b",
    "delete": b"a\x7fb",
    "direction": "\u202egnp.exe".encode(),
}
# Any control character but the line end and the tab, and C1 in UTF-8.
DANGEROUS = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]")
# The live display itself writes these: cursor movements, colours, and the end of a line in a terminal.
RICH = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r(?=[\n\x1b])|\r$")


def items(attack: bytes) -> list[LogItem]:
    text = attack.decode("utf-8", "surrogateescape")
    return [
        LogBlock(b"[rank 0 cpu:0 #1] " + attack + b"\n" + attack + b"\n"),
        LogBlock(b'[rank 1 cpu:1 #1] step step=1 news="' + attack + b'"\n'),
        LogBlock(b'[rank 1 cpu:1 #2] progress done=1 left_s=1 rates="1 1" waits="' + attack + b" " + attack + b'"\n'),
        LogBlock(b'[rank 2 cpu:2 #1] step step=2 news="\\u001b]0;owned\\u0007"\n'),
        Notice(f"job job: Pending: {text}"),
        LogLoss(text, source=text),
    ]


@pytest.fixture
def terminal() -> Iterator[tuple[int, Callable[[], bytes]]]:
    """Yield a terminal's descriptor, and a function that returns what was written to it."""
    master, slave = pty.openpty()
    written = b""

    def read() -> bytes:
        nonlocal written
        os.set_blocking(master, False)
        try:
            while data := os.read(master, 1 << 16):
                written += data
        except BlockingIOError:
            pass
        return written.replace(b"\r\n", b"\n")

    yield slave, read
    for descriptor in (master, slave):
        os.close(descriptor)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_terminal_is_shown_escapes_and_a_pipe_gets_the_bytes(
    attack: bytes, terminal: tuple[int, Callable[[], bytes]]
) -> None:
    slave, written = terminal
    with open(slave, "wb", closefd=False) as out:
        err = io.StringIO()
        LogFollow().run(items(attack), PlainDisplay(out, err))
    shown = written()
    assert shown.count(b"\n") == 5
    assert DANGEROUS.search(shown) is None
    assert DANGEROUS.search(err.getvalue().encode()) is None
    pipe = io.BytesIO()
    LogFollow().run(items(attack), PlainDisplay(pipe, io.StringIO()))
    assert pipe.getvalue().startswith(b"[rank 0 cpu:0] " + attack + b"\n" + attack + b"\n")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_raw_passes_to_a_terminal_and_json_is_never_dangerous(
    attack: bytes, terminal: tuple[int, Callable[[], bytes]]
) -> None:
    slave, written = terminal
    with open(slave, "wb", closefd=False) as out:
        LogFollow().run(items(attack)[:1], PlainDisplay(out, io.StringIO(), "raw"))
        assert attack in written()
        before = len(written())
        LogFollow().run(items(attack), PlainDisplay(out, io.StringIO(), "json"))
    assert DANGEROUS.search(written()[before:]) is None


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_live_display_shows_escapes_in_every_part(attack: bytes) -> None:
    out = io.StringIO()
    progress = JobProgress()
    reading = LogFollow(progress=progress)
    console = Console(file=out, force_terminal=True, width=120, highlight=False, markup=False, emoji=False)
    display = LiveDisplay(console, progress)
    reading.run(items(attack), display)
    display.close()
    shown = RICH.sub(b"", out.getvalue().encode())
    assert b"news \\x1b]0;owned\\x07" in shown
    assert shown.count(visible(attack.decode("utf-8", "surrogateescape")).encode()) >= 5
    assert DANGEROUS.search(shown) is None


NUMBERS = ("nan", "inf", "-inf", "1e999", "9" * 5000, "-3", "0", "1e300", "1_0", "x", "")


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("kind", ["step", "eval", "progress", "time", "result"])
def test_any_number_that_a_job_prints_can_be_shown(kind: str, value: str) -> None:
    """What a job prints is data: it must not end the launcher, nor become JSON that no program reads."""
    times = ("epoch", "epochs", "step", "steps", "best_epoch", "train_s", "wall_s")
    fields = " ".join(
        f"{name}={value}"
        for name in (
            *(*times, "loss", "lr", "fps", "top1", "top5", "images", "best_top1"),
            *("done", "left_s", "left_low_s", "left_high_s", "data_s", "device_s", "slowest_rank", "slower", "rates"),
        )
    )
    reading = LogFollow()
    block = f"[rank 0 cpu:0 #1] {kind} {fields}\n[rank 1 cpu:1 #1] {kind} epoch=0 step=1\n"
    reading.run([LogBlock(block.encode())], PlainDisplay(io.BytesIO(), io.StringIO()))
    for phase in (Phase.RUNNING, Phase.SUCCEEDED):
        state = JobState(JobRef("local", "job"), phase)
        assert report.summary(state, reading, now=0, where="")
        assert report.status_text(state, reading.progress, [], now=0, where="")
        assert report.list_text([(state, reading.progress)], now=0)
        json.dumps(report.job_document(state, reading.progress), allow_nan=False)
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=120), reading.progress)
    reading.run([LogBlock(block.encode())], display)
    display.close()


@pytest.mark.parametrize(("columns", "live"), [("0", False), ("1", True), ("x", True)])
def test_a_terminal_that_claims_no_columns_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, columns: str, live: bool
) -> None:
    """Rich prints nothing there, not even the lines of the job."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    assert (live_display(JobProgress()) is not None) == live


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_summaries_listings_and_errors_show_escapes(attack: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    text = attack.decode("utf-8", "surrogateescape")
    reading = LogFollow()
    reading.run(
        [LogBlock(b'[rank 0 cpu:0 #1] result top1=5 output="' + attack + b'"\n')],
        PlainDisplay(io.BytesIO(), io.StringIO()),
    )
    state = JobState(JobRef("local", "job"), Phase.FAILED, reason=text, spec={"train": {"mode": text, "model": text}})
    texts = (
        report.summary(state, reading, now=0, where=""),
        report.status_text(state, reading.progress, [JobEvent(0, text)], now=0, where=""),
        report.list_text([(state, reading.progress)], now=0),
    )
    for shown in texts:
        assert DANGEROUS.search(shown.encode()) is None

    def fail() -> None:
        raise LauncherError(f"job failed: {text}")

    assert run_command(fail) != 0
    assert DANGEROUS.search(capfd.readouterr().err.encode()) is None
