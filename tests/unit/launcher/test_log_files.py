"""Each device has one file, to which every line is appended as the trainer wrote it."""

import io
from pathlib import Path

import pytest

from launcher.errors import RequestError
from launcher.jobs import LogBlock
from launcher.output.display import LogFiles, PlainDisplay
from launcher.output.follow import LogFollow, LogView
from launcher.output.lines import LogLine, Selection, Writer


def follow(data: bytes, view: LogView, folder: Path) -> bytes:
    """Return what is shown of a log that is saved to `folder`."""
    out = io.BytesIO()
    with LogFiles(folder) as files:
        LogFollow(view, files).run([LogBlock(data)], PlainDisplay(out, io.StringIO(), "raw"))
    return out.getvalue()


def test_each_device_has_a_file_of_all_its_lines_whatever_is_shown(tmp_path: Path) -> None:
    lines = b"[rank 0 cpu:0 #1] a\n[rank 1 cpu:1 #1] b\nplain\n[rank 0 cpu:0 #3] c\n[node 0 #1] d\n"
    assert follow(lines, LogView(selection=Selection(rank=1)), tmp_path) == b"[rank 1 cpu:1 #1] b\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "rank-0.log": "[rank 0 cpu:0 #1] a\n--- line 2 of rank 0 cpu:0 is missing ---\n[rank 0 cpu:0 #3] c\n",
        "rank-1.log": "[rank 1 cpu:1 #1] b\n",
        "node-0.log": "[node 0 #1] d\n",
        "untagged.log": "plain\n",
    }
    follow(b"[rank 1 cpu:1 #1] again\n", LogView(), tmp_path)
    assert (tmp_path / "rank-1.log").read_text() == "[rank 1 cpu:1 #1] b\n[rank 1 cpu:1 #1] again\n"


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught, LogFiles(tmp_path) as files:
        files.write([LogLine(b"[rank 0 cpu:0 #1] a", b"a", Writer("rank 0 cpu:0"))])
    assert caught.value.filename == str(tmp_path / "rank-0.log")


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"--save .*file/logs"):
        LogFiles(tmp_path / "file" / "logs")
