"""Each device has one file with every line as the trainer wrote it, each once, however often the log is saved."""

import io
import resource
from pathlib import Path

import pytest

from launcher.errors import RequestError
from launcher.jobs import LogBlock
from launcher.output.display import PlainDisplay
from launcher.output.files import LogFiles
from launcher.output.follow import LogFollow, LogView
from launcher.output.lines import LogLine, Selection, Writer

LINES = b"[rank 0 cpu:0 #1] a\n[rank 1 cpu:1 #1] b\nplain\n[rank 0 cpu:0 #3] c\nplain\n[node 0 #1] d\n"
FILES = {
    "rank-0.log": "[rank 0 cpu:0 #1] a\n--- line 2 of rank 0 cpu:0 is missing ---\n[rank 0 cpu:0 #3] c\n",
    "rank-1.log": "[rank 1 cpu:1 #1] b\n",
    "node-0.log": "[node 0 #1] d\n",
    "untagged.log": "plain\nplain\n",
}


def save(data: bytes, folder: Path, view: LogView | None = None, *, stream: str = "") -> bytes:
    """Save a log to `folder`; return what is shown of it."""
    out = io.BytesIO()
    with LogFiles(folder) as files:
        LogFollow(view or LogView(), files).run([LogBlock(data, stream)], PlainDisplay(out, io.StringIO(), "raw"))
    return out.getvalue()


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_each_device_has_a_file_of_all_its_lines_whatever_is_shown(tmp_path: Path) -> None:
    assert save(LINES, tmp_path, LogView(selection=Selection(rank=1))) == b"[rank 1 cpu:1 #1] b\n"
    assert texts(tmp_path) == FILES


def test_a_log_that_is_saved_again_continues_its_files(tmp_path: Path) -> None:
    for _ in range(3):
        save(LINES, tmp_path)
        assert texts(tmp_path) == FILES
    end = b'[rank 0 cpu:0 #4] d\n[rank 0 cpu:0 #2] late\nplain\nlast\n[node 0 #2] ended lines="0:4 1:3"\n'
    for _ in range(2):
        save(LINES + end, tmp_path)
    assert texts(tmp_path) == {
        "rank-0.log": FILES["rank-0.log"] + "[rank 0 cpu:0 #4] d\n[rank 0 cpu:0 #2] late\n",
        "rank-1.log": FILES["rank-1.log"] + "--- lines 2-3 of rank 1 cpu:1 are missing ---\n",
        "node-0.log": FILES["node-0.log"] + '[node 0 #2] ended lines="0:4 1:3"\n',
        "untagged.log": FILES["untagged.log"] + "plain\nlast\n",
    }


def test_lines_that_a_node_has_deleted_since_stay_saved_and_are_no_gap(tmp_path: Path) -> None:
    save(b"[rank 0 cpu:0 #1] a\n[rank 0 cpu:0 #2] b\n", tmp_path)
    save(b"[rank 0 cpu:0 #2] b\n[rank 0 cpu:0 #3] c\n", tmp_path)
    assert texts(tmp_path) == {"rank-0.log": "[rank 0 cpu:0 #1] a\n[rank 0 cpu:0 #2] b\n[rank 0 cpu:0 #3] c\n"}


def test_the_same_lines_of_another_pod_are_other_lines(tmp_path: Path) -> None:
    line = b"[rank 0 cpu:0 #1] start\nplain\n"
    for pod in ("a", "b", "a", "b"):
        save(line, tmp_path, stream=f"pod {pod}")
    owners = ("--- lines of pod a ---\n", "--- lines of pod b ---\n")
    assert texts(tmp_path) == {
        "rank-0.log": "".join(f"{owner}[rank 0 cpu:0 #1] start\n" for owner in owners),
        "untagged.log": "".join(f"{owner}plain\n" for owner in owners),
    }


def test_a_job_cannot_say_whose_lines_follow(tmp_path: Path) -> None:
    data = b"--- lines of pod b ---\n--- line 3 of rank 0 cpu:0 is missing ---\n --- lines of pod c ---\nplain\n"
    for _ in range(3):
        save(data, tmp_path, stream="pod a")
    expected = "".join(f" {line}\n" for line in data.decode().splitlines()[:3])
    assert texts(tmp_path) == {"untagged.log": f"--- lines of pod a ---\n{expected}plain\n"}


def test_half_a_line_that_a_killed_launcher_left_is_written_whole_again(tmp_path: Path) -> None:
    (tmp_path / "rank-1.log").write_text("[rank 1 cpu:1 #1] b\n[rank 1 cpu:1 #2] ha")
    save(b"[rank 1 cpu:1 #1] b\n[rank 1 cpu:1 #2] half\n", tmp_path)
    whole = "[rank 1 cpu:1 #1] b\n[rank 1 cpu:1 #2] ha\n[rank 1 cpu:1 #2] half\n"
    assert texts(tmp_path) == {"rank-1.log": whole}


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = LogLine(b"[rank 0 cpu:0 #1] aaaa", b"aaaa", Writer("rank 0 cpu:0"), 1)
    with LogFiles(tmp_path) as files:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                files.write([line])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "rank-0.log")


@pytest.mark.parametrize("name", ["rank-0.log", "rank-12.log", "node-0.log", "untagged.log"])
def test_no_link_leads_lines_out_of_the_folder(tmp_path: Path, name: str) -> None:
    target, folder = tmp_path / "target", tmp_path / "logs"
    target.write_text("precious\n")
    folder.mkdir()
    (folder / name).symlink_to(target)
    with pytest.raises(RequestError, match=f"--save .*logs: {name} is a link; remove it"):
        save(LINES, folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(RequestError, match=f"{name} is no file"):
        save(LINES, folder)
    assert target.read_text() == "precious\n"


def test_a_link_that_appears_later_is_not_followed_either(tmp_path: Path) -> None:
    with LogFiles(tmp_path) as files:
        (tmp_path / "untagged.log").symlink_to(tmp_path / "target")
        with pytest.raises(OSError, match="symbolic links"):
            files.write([LogLine(b"a", b"a")])
    assert not (tmp_path / "target").exists()


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"--save .*file/logs"):
        LogFiles(tmp_path / "file" / "logs")
    with LogFiles(tmp_path / "logs"), pytest.raises(RequestError, match="another launcher saves there"):
        LogFiles(tmp_path / "logs")
