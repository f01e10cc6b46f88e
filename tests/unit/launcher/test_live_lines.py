"""Each device has one line in a terminal of any width."""

import pytest

from launcher.output.progress import ProgressLine, device_lines, parse_progress


def step(number: int, fps: str = "302.123") -> ProgressLine:
    text = f"step epoch=0 epochs=10 step={number} steps=88 loss=2.79811 lr=0.05 fps={fps} top1=13.125"
    line = parse_progress(text.encode())
    assert line is not None
    return line


DEVICES: dict[str, ProgressLine | str] = {
    "rank 0 cpu:0": step(44),
    "rank 1 cpu:1": step(4, fps="91"),
    "rank 2 cpu:2": "start a b",
}


def test_columns_are_aligned() -> None:
    assert device_lines(DEVICES, 120) == [
        "rank 0 cpu:0  epoch 1/10  ████████░░░░░░░░  44/88  loss 2.798  lr 0.05  302.1 images/s  top1 13.12",
        "rank 1 cpu:1  epoch 1/10  █░░░░░░░░░░░░░░░  4/88   loss 2.798  lr 0.05  91 images/s     top1 13.12",
        "rank 2 cpu:2  start a b",
    ]


@pytest.mark.parametrize("width", range(1, 121))
def test_a_line_never_becomes_two(width: int) -> None:
    lines = device_lines(DEVICES, width)
    assert len(lines) == len(DEVICES)
    assert max(map(len, lines)) <= width


def test_a_narrow_terminal_keeps_the_most_important_columns() -> None:
    assert (
        device_lines(DEVICES, 80)[0]
        == "rank 0 cpu:0  epoch 1/10  ████░░░  44/88  loss 2.798  302.1 images/s  top1 13.12"
    )
    assert (
        device_lines(DEVICES, 78)[0] == "rank 0 cpu:0  epoch 1/10  ████████░░░░░░░░  44/88  loss 2.798  302.1 images/s"
    )
    assert device_lines(DEVICES, 40)[0] == "rank 0 cpu:0  44/88  loss 2.798"
    assert device_lines(DEVICES, 20)[0] == "rank 0 cpu:0  44/88"


def test_a_terminal_with_ascii_only_gets_signs_instead_of_blocks() -> None:
    assert "  ########--------  44/88" in device_lines(DEVICES, 120, ascii_only=True)[0]


def test_text_is_shown_unchanged_and_an_unknown_field_is_left_out_first() -> None:
    line = parse_progress(b"step step=1 steps=2 loss=nan news=good")
    assert line is not None
    assert device_lines({"a": line}, 60) == ["a  ████████░░░░░░░░  1/2  loss nan  news good"]
    assert device_lines({"a": line}, 30) == ["a  ██████░░░░░░  1/2  loss nan"]


def test_no_device_gives_no_line() -> None:
    assert device_lines({}, 80) == []
