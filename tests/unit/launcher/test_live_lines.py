"""In a terminal of any width, a job has a line with its bar, and each device a short one."""

import io

import pytest
from rich.console import Console

from launcher.jobs import LogBlock
from launcher.output.follow import LogFollow
from launcher.output.lines import parse_lines
from launcher.output.live import LiveDisplay
from launcher.output.progress import DEVICE_FIGURES, JobProgress, live_lines, slowest_rank, time_left

STEP = "step epoch=0 epochs=10 step={} steps=88 loss=2.79811 lr=0.05 fps=302.123 top1=13.125"
AHEAD = (
    "progress done=12.34 left_s=7380 left_low_s=7000 left_high_s=9000 limit=data slowest_rank=1 slower=12.5 "
    'slowest_part=host rates="151.2 91.04 abc" waits="peers data ?"'
)
DEVICES = {0: "cpu:0", 1: "cpu:1", 12: "cpu:12"}
TEXTS = {0: "start a b", 12: "start a b"}


def progress(*lines: str) -> JobProgress:
    text = "".join(f"[rank {number % 2} cpu:{number % 2} #{number}] {line}\n" for number, line in enumerate(lines))
    return JobProgress().update_all(parse_lines(text.encode()))


STEPS = progress(STEP.format(44), STEP.format(4))
WITH_FIGURES = progress(STEP.format(44), STEP.format(44), AHEAD)


def test_the_job_has_the_bar_and_each_device_what_it_waits_for() -> None:
    assert live_lines(WITH_FIGURES, DEVICES, TEXTS, 140) == [
        "job             12.3 %  ██░░░░░░░░░░░░░░  2 h 3 min left  epoch 1/10  44/88  loss 2.798  lr 0.05  "
        "302.1 images/s  top1 13.12",
        "rank 0 cpu:0    151.2 images/s  waits for peers",
        "rank 1 cpu:1    91.04 images/s  waits for data",
        "rank 12 cpu:12  start a b",
    ]


HARDWARE = (
    'use_percent="93 - 7" memory_percent="61 60 9" temperature_c="71 70 -" power_w="251 98" host_use_percent="40 87 -"'
)


def test_a_device_has_the_figures_of_its_hardware_in_columns_and_the_job_the_use_of_its_busiest_host() -> None:
    job, *devices = live_lines(progress(STEP.format(44), STEP.format(44), f"{AHEAD} {HARDWARE}"), DEVICES, TEXTS, 140)
    assert job.endswith("  host 87 %")
    assert devices == [
        "rank 0 cpu:0    151.2 images/s  waits for peers  use 93 %  memory 61 %  71 C  251 W",
        "rank 1 cpu:1    91.04 images/s  waits for data             memory 60 %  70 C   98 W",
        "rank 12 cpu:12  start a b",
    ]


def test_a_run_that_only_evaluates_has_a_bar_without_steps() -> None:
    ahead = "progress done=25 left_s=90 left_low_s=80 left_high_s=99 fps=1234.5 use_percent=93"
    assert live_lines(progress(ahead), {0: "npu:0"}, TEXTS, 80) == [
        "job           25.0 %  ████░░░░░░░░░░░░  1 min 30 s left  1234 images/s",
        "rank 0 npu:0  use 93 %",
    ]


@pytest.mark.parametrize("name", [*DEVICE_FIGURES, "host_use_percent"])
@pytest.mark.parametrize("value", ['"\\u001b[2J {} nan"', "nan", "1e999", '""', "-", '"' + "9 " * 9999 + '"'])
def test_no_text_in_a_figure_is_obeyed(name: str, value: str) -> None:
    lines = live_lines(progress(f"progress done=1 left_s=1 {name}={value}"), DEVICES, TEXTS, 80)
    assert len(lines) == 4
    assert all(line.isprintable() and len(line) <= 80 for line in lines)


def test_before_the_first_figures_a_device_has_its_step_and_the_bar_is_the_epochs() -> None:
    assert live_lines(STEPS, DEVICES, TEXTS, 100) == [
        "job             ████████░░░░░░░░  epoch 1/10  44/88  loss 2.798  lr 0.05  302.1 images/s  top1 13.12",
        "rank 0 cpu:0    44/88",
        "rank 1 cpu:1    4/88",
        "rank 12 cpu:12  start a b",
    ]
    assert live_lines(JobProgress(), DEVICES, TEXTS, 100)[0] == "rank 0 cpu:0    start a b"


@pytest.mark.parametrize("width", range(1, 141))
@pytest.mark.parametrize("state", [STEPS, WITH_FIGURES, JobProgress()])
def test_a_line_never_becomes_two(width: int, state: JobProgress) -> None:
    lines = live_lines(state, DEVICES, TEXTS, width)
    assert len(lines) == len(DEVICES) + (state is not None and state.latest_step is not None)
    assert max(map(len, lines)) <= width


def test_a_narrow_terminal_keeps_the_most_important_columns() -> None:
    def job(width: int) -> str:
        return live_lines(WITH_FIGURES, {0: "cpu:0"}, {}, width)[0]

    assert job(80) == "job           12.3 %  █░░░░░░  2 h 3 min left  44/88  loss 2.798  302.1 images/s"
    assert job(45) == "job           12.3 %  2 h 3 min left  44/88"
    assert job(20) == "job           12.3 %"


def test_a_terminal_with_ascii_only_gets_signs_instead_of_blocks() -> None:
    assert "  ########--------  epoch" in live_lines(STEPS, DEVICES, TEXTS, 120, ascii_only=True)[0]


def test_an_unknown_field_is_left_out_first_and_control_characters_are_shown() -> None:
    state = progress("step step=1 steps=2 loss=nan news=good", 'progress done=1 left_s=1 rates="\\u001b[1m" waits=x')
    assert (
        live_lines(state, {0: "a"}, {}, 70)[0]
        == "job       1.0 %  ░░░░░░░░░░░░░░░  1.0 s left  1/2  loss nan  news good"
    )
    assert "news" not in live_lines(state, {0: "a"}, {}, 50)[0]
    assert not any(character < " " for line in live_lines(state, {0: "a"}, {}, 70) for character in line)


def test_an_ended_job_is_done_and_has_no_time_left() -> None:
    lines = live_lines(progress(STEP.format(88), STEP.format(88), AHEAD, "result top1=1"), DEVICES, TEXTS, 140)
    assert lines[0].startswith("job             100.0 %  ████████████████  epoch 1/10  88/88")


def test_no_device_gives_no_line() -> None:
    assert live_lines(WITH_FIGURES, {}, {}, 80) == []


def test_the_time_left_has_its_bounds_and_the_slowest_rank_its_reason() -> None:
    ahead = WITH_FIGURES.ahead
    assert time_left(ahead) == "2 h 3 min (1 h 56 min to 2 h 30 min)"
    assert slowest_rank(ahead) == "rank 1, 12.5 % slower than the others, mostly by the host"
    for text in ("progress done=1", "progress slowest_rank=1 slower=2 slowest_part=host", "progress slower=nan"):
        line = progress(text).ahead
        assert (time_left(line), slowest_rank(line)) == ("", "")
    assert (time_left(None), slowest_rank(None)) == ("", "")


def test_a_rank_whose_lines_are_all_hidden_has_a_line() -> None:
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, width=120), state := JobProgress())
    block = "".join(f"[rank {rank} cpu:{rank} #1] eval top1=10\n" for rank in range(2))
    LogFollow(progress=state).run([LogBlock(block.encode())], display)
    display.close()
    assert [line.split("  ")[0] for line in live_lines(state, state.devices, {}, 120)] == [
        "rank 0 cpu:0",
        "rank 1 cpu:1",
    ]
