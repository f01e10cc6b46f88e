"""One file per device, appended to, with every line as it was written."""

from pathlib import Path

import pytest

from launcher.errors import RequestError
from launcher.jobs import Block
from launcher.output.display import PlainView
from launcher.output.follow import Following
from launcher.output.lines import Demultiplexer, Line, Selection, Writer
from launcher.output.saving import Files


def test_each_device_has_a_file_of_all_its_lines_whatever_is_shown(tmp_path: Path) -> None:
    lines = b"[rank 0 cpu:0 #1] a\n[rank 1 cpu:1 #1] b\nplain\n[rank 0 cpu:0 #3] c\n[node 0 #1] d\n"
    shown = (tmp_path / "shown").open("wb")
    with Files(tmp_path / "logs") as files, shown:
        seen = Following(Demultiplexer(), files=files)
        seen.run([Block(lines)], PlainView(shown, "raw"), selection=Selection(rank=1))
    assert (tmp_path / "shown").read_bytes() == b"[rank 1 cpu:1 #1] b\n"
    assert {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()} == {
        "rank-0.log": "[rank 0 cpu:0 #1] a\n--- line 2 of rank 0 cpu:0 is missing ---\n[rank 0 cpu:0 #3] c\n",
        "rank-1.log": "[rank 1 cpu:1 #1] b\n",
        "node-0.log": "[node 0 #1] d\n",
        "untagged.log": "plain\n",
    }
    with Files(tmp_path / "logs") as files, (tmp_path / "shown").open("wb") as shown:
        Following(files=files).run([Block(b"[rank 1 cpu:1 #1] again\n")], PlainView(shown, "raw"))
    assert (tmp_path / "logs" / "rank-1.log").read_text().endswith("again\n")


def test_a_full_disk_is_told_with_the_file_that_is_on_it(tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught, Files(tmp_path) as files:
        files.write([Line(b"[rank 0 cpu:0 #1] a", b"a", Writer("rank 0 cpu:0"))])
    assert caught.value.filename == str(tmp_path / "rank-0.log")


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"--save .*file/logs"):
        Files(tmp_path / "file" / "logs")
