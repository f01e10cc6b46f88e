"""Lines that several ranks say alike are shown once; each line is counted and saved all the same."""

import io
import random
from collections import Counter
from pathlib import Path

import pytest

from launcher.jobs import LogBlock
from launcher.output.display import Format, PlainDisplay
from launcher.output.files import LogFiles
from launcher.output.follow import LogFollow, LogView
from launcher.output.lines import LogGap, LogLine, Selection, parse_lines
from launcher.output.same_lines import SameLines

SEEDS = range(50)


def shown(text: str, view: LogView | None = None) -> tuple[list[str], LogFollow]:
    out = io.BytesIO()
    reading = LogFollow(view or LogView())
    reading.run([LogBlock(text.encode())], PlainDisplay(out, io.StringIO(), reading.view.form))
    return out.getvalue().decode().splitlines(), reading


TWO = (
    "[rank 1 npu:1 #1] step step=1 fps=8.1 top1=3 time=10:00\n[rank 0 npu:0 #1] step step=1 fps=8.2 top1=3 time=10:01\n"
    "[node 0 #1] a\n[node 1 #1] a\n"
)


def test_the_first_of_the_same_lines_is_shown_and_all_are_counted() -> None:
    lines, reading = shown(TWO)
    assert lines == ["[rank 1 npu:1] step step=1 fps=8.1 top1=3 time=10:00", "[node 0] a", "[node 1] a"]
    assert (reading.demultiplexer.lines, reading.same_lines.hidden) == (2, 1)
    assert reading.progress.step(0) is not None


@pytest.mark.parametrize(
    "view",
    [
        LogView(all_ranks=True),
        LogView(form="raw"),
        LogView(form="json"),
        LogView(selection=Selection(rank=0)),
        LogView(selection=Selection(device="npu:1")),
    ],
)
def test_every_rank_is_shown_where_the_user_asks_for_it(view: LogView) -> None:
    lines, reading = shown(TWO, view)
    assert reading.same_lines.hidden == 0
    assert len(lines) == (1 if view.selection.of_a_device else 4)


def test_a_pattern_and_the_last_lines_count_what_is_shown() -> None:
    block = "".join(f"[rank {rank} npu:{rank} #{n}] n={n}\n" for n in range(1, 6) for rank in range(4))
    assert shown(block, LogView(tail=2))[0] == ["[rank 0 npu:0] n=4", "[rank 0 npu:0] n=5"]


@pytest.mark.parametrize(
    "text", ["step loss={} fps=1", "eval fps={}", "n={} time=1", "time={} news", 'step a="b fps={}"']
)
def test_other_figures_make_other_lines(text: str) -> None:
    lines = [f"[rank {rank} npu:{rank} #1] {text.format(rank)}" for rank in range(2)]
    assert len(shown("\n".join([*lines, ""]))[0]) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_no_text_is_lost_in_any_order_of_lines(seed: int) -> None:
    """Each text is shown as often as the rank that says it most often, at least; never more often than it is said."""
    draw = random.Random(seed)
    texts = {rank: [f"t={draw.randint(1, 4)}" for _ in range(6)] for rank in range(3)}
    left = {rank: list(said) for rank, said in texts.items()}
    pieces: list[LogLine | LogGap] = []
    while any(left.values()):
        rank = draw.choice([rank for rank, said in left.items() if said])
        text = left[rank].pop(0)
        pieces += parse_lines(f"[rank {rank} npu:{rank} #1] {text}\n".encode())
    same = SameLines()
    out = [piece for piece in same.without_same(pieces) if isinstance(piece, LogLine)]
    times_shown = Counter(line.text.decode() for line in out)
    said = {rank: Counter(words) for rank, words in texts.items()}
    for text, number in times_shown.items():
        assert max(counts[text] for counts in said.values()) <= number <= sum(counts[text] for counts in said.values())
    assert set(times_shown) == {text for words in texts.values() for text in words}
    assert len(out) + same.hidden == 18


@pytest.mark.parametrize("form", ["text", "raw"])
def test_saved_files_have_the_lines_of_each_rank(tmp_path: Path, form: Format) -> None:
    with LogFiles(tmp_path) as files:
        LogFollow(LogView(form=form), files).run([LogBlock(TWO.encode())], PlainDisplay(io.BytesIO(), io.StringIO()))
    assert {path.name for path in tmp_path.iterdir()} == {"rank-0.log", "rank-1.log", "node-0.log", "node-1.log"}
