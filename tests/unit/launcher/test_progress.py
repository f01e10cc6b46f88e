"""Progress lines give the latest steps, the evaluation, the result, and the first cause of a failure."""

from launcher.output.lines import parse_lines
from launcher.output.progress import JobProgress, parse_progress


def read(*lines: str) -> JobProgress:
    return JobProgress().update_all(parsed for text in lines for parsed in parse_lines(text.encode()))


def test_numbers_are_read_as_numbers_and_other_values_as_text() -> None:
    line = parse_progress(b'result mode=full top1=97.8 images=360 lr=4e-05 loss=nan output="/a b/c" note=1.2.3 empty=')
    assert line is not None
    assert line.kind == "result"
    fields = dict(line.fields)
    assert repr(fields.pop("loss")) == "nan"
    assert fields == {
        "mode": "full",
        "top1": 97.8,
        "images": 360,
        "lr": 4e-05,
        "output": "/a b/c",
        "note": "1.2.3",
        "empty": "",
    }


def test_an_ordinary_line_is_not_a_progress_line() -> None:
    for text in (b"", b"steps are small", b"evaluation follows", b"a step epoch=1", b"error"):
        assert parse_progress(text) is None


def test_the_latest_step_of_each_device_and_of_the_job() -> None:
    progress = read(
        "[rank 0 cpu:0 #1] step epoch=0 step=90 steps=100 loss=2.0",
        "[rank 1 cpu:1 #1] step epoch=1 step=10 steps=100 loss=1.5",
        "[rank 0 cpu:0 #2] step epoch=1 step=5 steps=100 loss=1.6",
    )
    steps = [progress.step(rank) for rank in (0, 1)]
    assert [step and step.fields["loss"] for step in steps] == [1.6, 1.5]
    assert progress.step(2) is None
    assert progress.latest_step == steps[1]


def test_the_first_failure_is_the_cause_and_takes_precedence_over_errors() -> None:
    progress = read(
        "[rank 1 cpu:1 #9] error batch 3 of 7 cannot be read",
        '[node 0 #7] failed rank=1 device=cpu:1 cause="killed by SIGKILL (out of memory?)"',
        '[node 1 #7] failed rank=9 device=cpu:1 cause="connection closed by peer"',
    )
    assert progress.cause == "rank 1 on cpu:1: killed by SIGKILL (out of memory?)"
    assert read("[rank 1 cpu:1 #9] error batch 3 of 7 cannot be read").cause == "batch 3 of 7 cannot be read"


def test_an_error_before_the_workers_start_is_the_cause() -> None:
    assert read("error: --data-path /data: no such folder").cause == "--data-path /data: no such folder"
    assert read("error prone code ahead", "step epoch=0 step=1").cause is None
