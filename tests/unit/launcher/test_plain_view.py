"""Lines where no terminal is: in every form they have their order, and a loss has its place or its notice."""

import json
from pathlib import Path

import pytest

from launcher.jobs import Block, LogItem, Loss, Notice
from launcher.output.display import Format, PlainView
from launcher.output.follow import Following

ITEMS: list[LogItem] = [
    Notice("pod a: started"),
    Block(b"[rank 0 cpu:0 #1] a\nplain\n"),
    Loss("pod a: what it said is lost"),
    Block(b"[rank 0 cpu:0 #3] c\n"),
]


def _shown(folder: Path, form: Format) -> str:
    with (folder / "shown").open("wb") as out:
        Following().run(ITEMS, PlainView(out, form))
    return (folder / "shown").read_text()


def test_in_json_a_loss_is_an_object_at_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = [json.loads(line) for line in _shown(tmp_path, "json").splitlines()]
    assert [thing["kind"] for thing in objects] == ["LogLine", "LogLine", "LogLoss", "LogGap", "LogLine"]
    assert objects[2] == {"apiVersion": "pnas/v1", "kind": "LogLoss", "text": "pod a: what it said is lost"}
    assert objects[0] | {"rank": 0, "device": "cpu:0", "node": None, "number": 1, "line": "a"} == objects[0]
    assert capsys.readouterr().err == "pod a: started\n"


@pytest.mark.parametrize(
    ("form", "first", "last"),
    [("text", "[rank 0 cpu:0] a", "[rank 0 cpu:0] c"), ("raw", "[rank 0 cpu:0 #1] a", "[rank 0 cpu:0 #3] c")],
)
def test_as_text_a_loss_is_a_notice_beside_the_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: Format, first: str, last: str
) -> None:
    assert _shown(tmp_path, form) == f"{first}\nplain\n{last}\n"
    said = ("pod a: started", "--- pod a: what it said is lost ---", "--- line 2 of rank 0 cpu:0 is missing ---")
    assert capsys.readouterr().err.splitlines() == list(said)
