"""A copy of a run is whole, checked by hash, continued after any interruption, and never mixed with another run's."""

import errno
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.cluster.run_files import reader_pod
from launcher.errors import ConflictError, LauncherError, UnreachableError
from launcher.jobs import Channel
from launcher.local import records
from launcher.local.files import open_local_files
from launcher.results import copying
from launcher.results.copying import Copied, RunCopy
from launcher.results.file_client import FileClient
from tests.documents import one_document
from tests.run_folders import write_run

CUTS = int(os.environ.get("PNAS_TEST_FETCH_CUTS", "12"))
SEED = 21


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "output" / "r1")
    (folder / "0").mkdir()
    (folder / "0" / "console-1.log").write_bytes(random.Random(SEED).randbytes(700_000))
    (folder / "empty").write_bytes(b"")
    (folder / "caf\udce9\x1b[31m").write_bytes(b"a name that is not UTF-8")
    (folder / "checkpoints" / "step-000000040").mkdir(parents=True)
    (folder / "checkpoints" / "step-000000040" / "state.safetensors").write_bytes(b"state")
    (folder / "checkpoints" / "best.safetensors").write_bytes(b"best")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "linked").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != ".pnas-fetch.json"
    }


def copy(
    run: Path,
    target: Path,
    *,
    opening: Callable[[Path], AbstractContextManager[Channel]] = open_local_files,
    source: str = "r1",
) -> Copied:
    notes: list[str] = []
    return RunCopy(partial(opening, run), target, source, lambda _: True, notes.append).run()


def test_every_regular_file_is_copied_once_and_no_link_is_followed(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    first = copy(run, target)
    assert files_of(target) == files_of(run)
    assert (len(first.files), first.unchanged, first.problems) == (len(files_of(run)), 0, [])
    again = copy(run, target)
    assert (again.files, again.size, again.unchanged) == ([], 0, len(first.files))


def test_a_file_that_has_grown_and_one_that_was_damaged_here_are_copied_again(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy(run, target)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    (target / "config.yaml").write_bytes(b"x" * (run / "config.yaml").stat().st_size)
    assert sorted(copy(run, target).files) == ["config.yaml", "metrics.jsonl"]
    assert files_of(target) == files_of(run)


class _Cut:
    """A channel that is cut after some bytes, in one of the ways in which connections end."""

    source = "pod r1-files"

    def __init__(self, inner: Channel, left: int, way: int) -> None:
        self._inner, self._left, self._way = inner, left, way

    def send(self, data: bytes) -> None:
        self._inner.send(data)

    def receive(self) -> bytes:
        block = self._inner.receive()[: self._left] if self._left else b""
        self._left -= len(block)
        if not block and self._way:
            raise UnreachableError("pod r1-files: the connection was cut")
        return block


def test_a_copy_goes_on_after_every_cut(
    run: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("seed", SEED)
    chance = random.Random(SEED)
    for number in range(CUTS):

        @contextmanager
        def cut(folder: Path) -> Iterator[Channel]:
            with open_local_files(folder) as channel:
                yield _Cut(channel, chance.randrange(2_000, 400_000), chance.randrange(2))

        target = tmp_path / f"copy-{number}"
        for _ in range(40):
            try:
                copied = copy(run, target, opening=cut)
            except UnreachableError:
                continue
            assert copied.problems == []
            break
        assert files_of(target) == files_of(run)


def test_a_channel_that_delivers_nothing_is_not_opened_for_ever(run: Path, tmp_path: Path) -> None:
    opened = []

    @contextmanager
    def dead(folder: Path) -> Iterator[Channel]:
        opened.append(folder)
        with open_local_files(folder) as channel:
            yield _Cut(channel, 0, 0)

    with pytest.raises(UnreachableError, match=r"^pod r1-files: the files are not read to their end; type the same"):
        copy(run, tmp_path / "copy", opening=dead)
    assert len(opened) == 3


def test_the_begin_of_another_file_is_not_continued(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy(run, target)
    (target / "config.yaml").unlink()
    (target / ".config.yaml.partial").write_text("not its begin")
    assert copy(run, target).files == ["config.yaml"]
    assert files_of(target) == files_of(run)


def test_a_file_that_cannot_be_read_any_more_keeps_no_other_from_its_copy(run: Path, tmp_path: Path) -> None:
    """A job that runs removes files, and files of another user's program can be closed to this one."""

    class Changing(_Cut):
        def receive(self) -> bytes:
            block = super().receive()
            if (run / "empty").is_file():
                (run / "config.yaml").unlink()
                (run / "empty").unlink()
                (run / "empty").mkdir()
            return block

    @contextmanager
    def opening(folder: Path) -> Iterator[Channel]:
        with open_local_files(folder) as channel:
            yield Changing(channel, 1 << 30, 0)

    copied = copy(run, tmp_path / "copy", opening=opening)
    assert copied.problems == [
        "config.yaml: cannot be read: No such file or directory",
        "empty: cannot be read: no regular file",
    ]
    assert files_of(tmp_path / "copy") == files_of(run)


def test_a_full_disk_is_one_line_and_what_is_copied_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, append = tmp_path / "copy", RunCopy._append

    def full(self: RunCopy, output: Any, client: FileClient, file: Any) -> bool:
        if file.path == "metrics.jsonl":
            output.write(b"{")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(self, output, client, file)

    monkeypatch.setattr(RunCopy, "_append", full)
    with pytest.raises(LauncherError) as error:
        copy(run, target)
    assert str(error.value) == (
        f"{target}/metrics.jsonl: cannot be written: No space left on device; free space or choose another --to, and "
        "type the same again: a copy goes on where it ended"
    )
    monkeypatch.undo()
    assert "0/console-1.log" not in copy(run, target).files
    assert files_of(target) == files_of(run)


def test_a_folder_of_other_files_or_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("mine")
    with pytest.raises(ConflictError, match=r"other: is not empty; choose another folder by --to$"):
        copy(run, other)
    assert files_of(other) == {"mine": b"mine"}
    target = tmp_path / "copy"
    copy(run, target)
    with pytest.raises(ConflictError, match=r"copy: has the files of r1; choose another folder by --to$"):
        copy(run, target, source="r2")
    with copying._own_folder(target, "r1"), pytest.raises(ConflictError, match="another launcher copies a run there"):
        copy(run, target)


def test_a_link_in_place_of_a_file_is_not_written_through(run: Path, tmp_path: Path) -> None:
    target, precious = tmp_path / "copy", tmp_path / "precious"
    precious.write_text("precious")
    copy(run, target)
    (target / "config.yaml").unlink()
    (target / "config.yaml").symlink_to(precious)
    (target / ".config.yaml.partial").symlink_to(precious)
    with pytest.raises(LauncherError, match="Too many levels of symbolic links"):
        copy(run, target)
    (target / ".config.yaml.partial").unlink()
    copy(run, target)
    assert precious.read_text() == "precious"
    assert files_of(target) == files_of(run)


class _Answers:
    """A channel to a program that answers what it likes."""

    source = "pod r1"

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)

    def send(self, data: bytes) -> None:
        pass

    def receive(self) -> bytes:
        return self._answers.pop(0) if self._answers else b""


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "", "a//b", ".", "a/.", "a\0b", "a/" + "b" * 300, 3]
)
def test_no_answer_leads_a_copy_out_of_its_folder(path: object) -> None:
    answer = json.dumps({"files": [["ok", 1], [path, 1]], "unreadable": []}).encode() + b"\n"
    with pytest.raises(UnreachableError, match=r"^pod r1: the files are not read to their end; type the same again$"):
        FileClient(_Answers(answer)).list()


@pytest.mark.parametrize("answer", [b"{\n", b"[]\n", b"\xff\n", b'{"files": 3, "unreadable": []}\n', b""])
def test_an_answer_in_another_form_is_one_line(answer: bytes) -> None:
    with pytest.raises(UnreachableError, match=r"^pod r1: the files are not read to their end"):
        FileClient(_Answers(answer)).list()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "link", "linked/passwd", "pipe", "0", "none", ""])
def test_the_program_next_to_the_files_reads_nothing_else(run: Path, path: str) -> None:
    with open_local_files(run) as channel:
        channel.send(json.dumps({"read": path, "from": 0, "to": 1}).encode() + b"\n")
        assert "error" in json.loads(channel.receive())


@pytest.fixture
def job(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of a local job that has ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = records.state_home({"XDG_STATE_HOME": str(tmp_path / "state")}) / "r1"
    folder.mkdir(parents=True)
    record = {"name": "r1", "command": ["x"], "cwd": str(tmp_path), "output": str(run), "created": 1.0, "spec": {}}
    records.write_record(folder / records.JOB, "LocalJob", {**record, "host": socket.gethostname()})
    records.write_record(folder / records.EXIT, "exit", {"returncode": 0, "ended": 2.0})
    return run


def test_fetch_leaves_out_the_states_to_resume_from(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "r1"]) == 0
    assert capsys.readouterr() == ("r1: 7 files copied, 0.7 MB\n", "")
    assert {name for name in files_of(job) if name not in files_of(Path("r1"))} == {
        "checkpoints/step-000000040/state.safetensors"
    }
    assert main(["fetch", "r1", "--checkpoints", "--json"]) == 0
    document = one_document(capsys.readouterr().out, "Fetched")
    assert document["files"] == ["checkpoints/step-000000040/state.safetensors"]
    assert (document["unchanged"], document["bytes"], document["folder"]) == (7, 5, "r1")
    assert main(["report", "./r1"]) == 0, "a copy has a report too"


def test_a_fetch_that_cannot_be_made_is_one_line(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    for words, code, error in (
        (["none"], 4, "there is no job `none` on this machine; see `python -m launcher list`"),
        (["r1", "--to", "output"], 6, "output: is not empty; choose another folder by --to"),
        (
            ["r1", "--to", "file"],
            74,
            "file: cannot be written: File exists; free space or choose another --to, and type",
        ),
        (["r1", "--to", "/proc/x\x1b"], 74, "/proc/x\\x1b: cannot be written: No such file or directory; free space"),
    ):
        assert main(["fetch", *words]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"error: {error}")
        assert captured.err.count("\n") == 1


def test_the_pod_that_reads_has_the_restrictions_of_the_jobs_pods_and_nothing_more() -> None:
    spec = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 7},
        "nodeSelector": {"a": "b"},
        "serviceAccountName": "x",
        "hostNetwork": True,
        "containers": [
            {"name": "other", "image": "other"},
            {
                "name": "trainer",
                "image": "r/pnas:1",
                "env": [{"name": "A"}],
                "securityContext": {"readOnlyRootFilesystem": True},
                "resources": {"limits": {"huawei.com/Ascend910": 8}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "output", "mountPath": "/output"}],
            },
        ],
        "volumes": [{"name": "data"}, {"name": "output", "persistentVolumeClaim": {"claimName": "pnas-output"}}],
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "r1" * 30, "uid": "u"}}
    pod = reader_pod(job, spec)
    assert len(pod["metadata"]["name"]) <= 63
    assert pod["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert pod["spec"]["securityContext"] == spec["securityContext"]
    assert pod["spec"]["nodeSelector"] == {"a": "b"}
    assert not pod["spec"].keys() & {"serviceAccountName", "hostNetwork"}
    (container,) = pod["spec"]["containers"]
    assert (container["image"], container["securityContext"]) == ("r/pnas:1", {"readOnlyRootFilesystem": True})
    assert "env" not in container
    assert container["volumeMounts"] == [{"name": "output", "mountPath": "/output", "readOnly": True}]
    assert pod["spec"]["volumes"] == [
        {"name": "output", "persistentVolumeClaim": {"claimName": "pnas-output", "readOnly": True}}
    ]
    assert "huawei.com/Ascend910" not in container["resources"]["limits"]
    nfs = {"name": "output", "nfs": {"server": "s", "path": "/"}}
    assert reader_pod(job, {**spec, "volumes": [nfs]})["spec"]["volumes"] == [nfs]


def test_an_interrupted_fetch_says_how_it_goes_on(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = RunCopy._write

    def interrupt(self: RunCopy, client: FileClient, file: Any, begun: Path, path: Path) -> bool:
        if file.path == "metrics.jsonl":
            raise KeyboardInterrupt
        return write(self, client, file, begun, path)

    monkeypatch.setattr(RunCopy, "_write", interrupt)
    assert main(["fetch", "r1"]) == 130
    text = "interrupted after 5 files: the same command goes on where it ended\n"
    assert capsys.readouterr() == ("", text)
    monkeypatch.undo()
    monkeypatch.chdir(job.parents[1])
    monkeypatch.setenv("XDG_STATE_HOME", str(job.parents[1] / "state"))
    assert main(["fetch", "r1"]) == 0
    assert capsys.readouterr().out.endswith(" 5 were there\n")
