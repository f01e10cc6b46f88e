"""Without a terminal, lines keep their order in every form, and losses have their place or their notice."""

import io
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from launcher.errors import UnreachableError
from launcher.jobs import JobRef, LogBlock, LogItem, LogLoss, Notice
from launcher.kube.retry import AWAY, BACK
from launcher.output.display import Format, PlainDisplay
from launcher.output.follow import LogFollow, LogView, show_log

ITEMS: list[LogItem] = [
    Notice("pod a: started"),
    LogBlock(b"[rank 0 cpu:0 #1] a\nplain\n"),
    LogLoss("the pod was deleted", source="pod a"),
    LogBlock(b"[rank 0 cpu:0 #3] c\n"),
]
LOSS = "pod a: lines may be lost: the pod was deleted"


def shown(form: Format) -> tuple[str, str]:
    """Return what is written to standard output and to stderr."""
    out, err = io.BytesIO(), io.StringIO()
    LogFollow().run(ITEMS, PlainDisplay(out, err, form))
    return out.getvalue().decode(), err.getvalue()


def test_in_json_a_loss_is_an_object_at_its_place() -> None:
    out, err = shown("json")
    objects = [json.loads(line) for line in out.splitlines()]
    assert [item["kind"] for item in objects] == ["LogLine", "LogLine", "LogLoss", "LogGap", "LogLine"]
    assert objects[2] == {"apiVersion": "pnas/v1", "kind": "LogLoss", "text": LOSS}
    assert objects[0] | {"rank": 0, "device": "cpu:0", "node": None, "number": 1, "line": "a"} == objects[0]
    assert err == "pod a: started\n"


class RestartingServer:
    """Jobs on a cluster whose API server restarts when a follower begins."""

    poll_s = 0.01

    def __init__(self) -> None:
        self.failures = 2

    def logs(self, _ref: JobRef, **_: object) -> Iterator[LogItem]:
        self.failures -= 1
        if self.failures >= 0:
            raise UnreachableError("refused")
        return iter(ITEMS)


def test_the_first_request_of_a_follower_is_as_patient_as_the_later_ones(capfd: pytest.CaptureFixture[str]) -> None:
    jobs, ref = cast("Any", RestartingServer()), JobRef("batch", "job")
    assert show_log(jobs, ref, LogView(), follow=True).demultiplexer.lines == 2
    notices = capfd.readouterr().err.splitlines()
    assert notices[:2] == [f"{AWAY} (refused)", BACK]
    with pytest.raises(UnreachableError, match="refused"):
        show_log(cast("Any", RestartingServer()), ref, LogView())


@pytest.mark.parametrize(
    ("form", "first", "last"),
    [("text", "[rank 0 cpu:0] a", "[rank 0 cpu:0] c"), ("raw", "[rank 0 cpu:0 #1] a", "[rank 0 cpu:0 #3] c")],
)
def test_as_text_a_loss_is_a_notice_on_stderr(form: Format, first: str, last: str) -> None:
    out, err = shown(form)
    assert out == f"{first}\nplain\n{last}\n"
    assert err.splitlines() == ["pod a: started", f"--- {LOSS} ---", "--- line 2 of rank 0 cpu:0 is missing ---"]


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (
            LogLoss("why", 1_000_000_000, 3_500_000_000, "pod a"),
            "lines between 00:00:01.000Z and 00:00:03.500Z are lost",
        ),
        (LogLoss("why", 10**9, None, "pod a"), "lines after 00:00:01.000Z may be lost"),
        (LogLoss("why", None, 10**9, "pod a"), "lines may be lost"),
    ],
)
def test_a_loss_gives_its_bounds_and_its_reason(loss: LogLoss, text: str) -> None:
    assert str(loss) == f"pod a: {text}: why"
