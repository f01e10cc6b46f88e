"""A reading of a log names what is not there: ranks and devices that a job does not have, and missing lines."""

import io
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from launcher.errors import ExitCode, NotFoundError
from launcher.jobs import Ended, JobRef, JobState, LogBlock, LogItem, LogLoss, Notice, Phase
from launcher.output import report
from launcher.output.display import PlainDisplay
from launcher.output.follow import LogFollow, LogView, show_log
from launcher.output.lines import Selection

REF = JobRef("local", "job")
TWO = [LogBlock(b"[rank 0 npu:4 #1] a\n[rank 1 npu:5 #1] b\n"), LogBlock(b"")]
LATER = LogBlock(b"[rank 0 npu:4 #2] c\n")


class Log:
    """Jobs whose log is given, of a job with a number of devices."""

    poll_s = 0.01

    def __init__(self, items: Sequence[LogItem], npus: int | None = None, phase: Phase = Phase.RUNNING) -> None:
        self._items = items
        self._npus = npus
        self._phase = phase
        self.delivered = 0

    def get(self, ref: JobRef) -> JobState:
        return JobState(ref, self._phase, spec={"train": {"npus": self._npus}})

    def logs(self, _ref: JobRef, **_: object) -> Iterator[LogItem]:
        for item in self._items:
            self.delivered += 1
            yield item


def read(
    items: Sequence[LogItem],
    selection: Selection,
    *,
    npus: int | None = None,
    phase: Phase = Phase.RUNNING,
    follow: bool = False,
) -> Log:
    log = Log(items, npus, phase)
    show_log(cast("Any", log), REF, LogView(selection=selection), follow=follow)
    return log


@pytest.mark.parametrize(
    ("npus", "phase", "follow"),
    [
        (2, Phase.RUNNING, False),
        (2, Phase.RUNNING, True),
        # The settings do not say how many devices there are, but they have all delivered their lines.
        (None, Phase.FAILED, True),
        (None, Phase.SUCCEEDED, True),
    ],
)
@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(device="3"), "--device 3"),
        (Selection(device="foo"), "--device foo"),
        (Selection(device="cpu:4"), "--device cpu:4"),
        (Selection(rank=2), "--rank 2"),
        (Selection(rank=0, device="5"), "--rank 0 --device 5"),
    ],
)
def test_a_device_that_a_job_does_not_have_is_an_error_that_names_its_devices(
    selection: Selection, words: str, npus: int | None, phase: Phase, follow: bool
) -> None:
    with pytest.raises(NotFoundError) as caught:
        read(TWO, selection, npus=npus, phase=phase, follow=follow)
    assert str(caught.value) == f"{words}: the job has rank 0 npu:4, rank 1 npu:5"
    assert caught.value.exit_code is ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    "selection", [Selection(device="5"), Selection(device="npu:4"), Selection(rank=1), Selection()]
)
def test_a_device_of_the_job_is_no_error(selection: Selection) -> None:
    for follow in (False, True):
        read([*TWO, LATER], selection, npus=2, follow=follow)


def test_a_follower_learns_it_as_soon_as_every_device_has_delivered_a_line() -> None:
    with pytest.raises(NotFoundError):
        read([*TWO, LATER], Selection(rank=7), npus=2, follow=True)
    assert read([*TWO, LATER], Selection(rank=2), npus=3, follow=True).delivered == 3, "rank 2 may still come"


def test_a_successor_on_other_devices_is_no_further_rank() -> None:
    successor = [LogBlock(b"[rank 0 npu:4 #1] a\n"), LogBlock(b"[rank 0 npu:7 #1] a\n", "successor"), LogBlock(b"")]
    assert read([*successor, TWO[0]], Selection(rank=1), npus=2, follow=True).delivered == 4


def test_a_job_without_lines_has_no_devices_yet() -> None:
    read([Notice("job job: Pending"), LogBlock(b"")], Selection(rank=3))


def test_many_devices_are_not_all_named() -> None:
    lines = b"".join(b"[rank %d npu:%d #1] a\n" % (rank, rank) for rank in range(64))
    with pytest.raises(NotFoundError, match=r"rank 15 npu:15 and 48 more$"):
        read([LogBlock(lines)], Selection(rank=64))


@pytest.mark.parametrize(
    ("items", "count", "warning"),
    [
        ([LogBlock(b"[rank 0 cpu:0 #1] a\n")], "0 missing", ""),
        ([LogBlock(b"[rank 0 cpu:0 #3] a\n")], "2 missing; lines 1-2", "2 lines are missing;"),
        (
            [LogBlock(b"[rank 0 cpu:0 #2] a\n"), LogLoss("why", source="pod a")],
            "1 missing; line 1",
            "1 line is missing, and",
        ),
        ([LogLoss("why", source="pod a")], "an unknown number missing; pod a", "no known number may be missing;"),
    ],
)
def test_missing_lines_are_counted_and_the_last_line_says_so(items: list[LogItem], count: str, warning: str) -> None:
    reading = LogFollow()
    reading.run(items, PlainDisplay(io.BytesIO(), io.StringIO()))
    state = JobState(REF, Phase.SUCCEEDED)
    assert count in report.summary(state, reading, now=0, where="")
    text = report.incomplete_warning(reading)
    assert warning in text
    assert text.startswith("warning: the log is not complete: ") == bool(warning)


END = b'[node 0 #1] ended lines="0:1" outcome=succeeded\n'


@pytest.mark.parametrize(
    ("lines", "nodes", "phase", "complete"),
    [
        (END, 1, Phase.SUCCEEDED, True),
        (b"", 1, Phase.SUCCEEDED, False),
        (END, 2, Phase.SUCCEEDED, False),
        (END + END.replace(b"node 0", b"node 1").replace(b"0:1", b"1:0"), 2, Phase.SUCCEEDED, True),
        (b"", 1, Phase.FAILED, True),
    ],
)
def test_a_success_without_its_last_lines_is_not_called_complete(
    lines: bytes, nodes: int, phase: Phase, complete: bool
) -> None:
    state = JobState(REF, phase, spec={"backend": "batch", "train": {"npus": 1, "nodes": nodes}})
    reading = LogFollow()
    items: list[LogItem] = [LogBlock(b"[rank 0 cpu:0 #1] a\n" + lines), Ended(state)]
    reading.run(items, PlainDisplay(io.BytesIO(), io.StringIO()))
    assert (report.incomplete_warning(reading) == "") == complete
