"""A file is the old one or the new one, whole, and the disk has it before its name does."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import LauncherError
from launcher.kube.kubeconfig_files import read_context
from launcher.manifests.overlay import read_overlay
from trainer.commands.ranktable import check_rank_table
from trainer.data.prepare import read_labels
from trainer.ranktable.identity import Identity
from trainer.ranktable.wait import wait_until_completed
from trainer.shared.config.layers import profile_layer
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import read_file, reading, replacing, why_no_file, why_no_folder, writing


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text("old")
    with pytest.raises(OSError, match="Is a directory"), replacing(path) as partial:
        partial.write_text("ne") and tmp_path.read_bytes()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("record", "old")]


def test_a_new_file_replaces_the_partial_file_of_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "record"
    (tmp_path / ".record.partial").write_text("a longer text of a killed writer")
    with replacing(path) as partial:
        partial.write_text("new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("record", "new")]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_of_the_umask_whatever_wrote_it(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "weights") as partial:
            partial.touch(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("sync", [True, False])
def test_the_order_is_write_sync_rename_sync_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    path, seen = tmp_path / "record", list[tuple[str, bool]]()

    def note(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    with replacing(path, sync=sync) as partial:
        partial.write_text("new")
    assert seen == ([(".record.partial", False), (tmp_path.name, True)] if sync else [])
    assert path.read_text() == "new"


def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", sync)
    with replacing(tmp_path / "record") as partial:
        partial.write_text("new")
    assert (tmp_path / "record").read_text() == "new"


def _rank_table(path: Path) -> object:
    return wait_until_completed(
        path,
        expected_devices=None,
        identity=Identity(),
        timeout_s=0,
        clock=lambda: 0,
        sleep=lambda _: None,
        on_status=lambda _: None,
    )


READERS: list[Callable[[Path], object]] = [
    lambda path: profile_layer(str(path)),
    lambda path: read_context(str(path), None),
    read_overlay,
    read_labels,
    check_rank_table,
    _rank_table,
]


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_on_a_file_system_is_refused_and_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises((TrainerError, LauncherError)) as error:
            read(tmp_path / name)
        assert "a pipe or device, not a regular file" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_a_pipe_that_the_user_hands_over_is_read(folder: str) -> None:
    reading_end, writing_end = os.pipe()
    os.write(writing_end, b"steps: 7")
    os.close(writing_end)
    try:
        assert profile_layer(f"{folder}/{reading_end}").values == {"steps": "7"}
    finally:
        os.close(reading_end)
    assert read_file(Path(os.devnull)) == b"", "KUBECONFIG=/dev/null is a custom for no kubeconfig"


def test_the_reason_names_what_is_there_in_place_of_a_file_or_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    faults = {tmp_path: "a folder, not a file", tmp_path / "pipe": "a pipe or device", tmp_path / "no": "no such file"}
    assert [path for path, fault in faults.items() if not why_no_file(path).startswith(fault)] == []
    assert why_no_folder(tmp_path / "pipe") == "not a folder"
    assert why_no_folder(tmp_path / "no") == "no such folder"


def test_a_failed_read_or_write_is_one_line_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone: cannot be read: No such file or directory; give another path"):
        _read(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"gone: cannot be read: Permission denied; check its permissions"):
        _read(tmp_path / "gone", PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(TrainerError, match=r"gone/x: cannot be written: No such file or directory; free some"):
        _write(tmp_path / "gone/x", advice="free some")


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EMFILE", "ENFILE", "ENOMEM"])
def test_a_read_that_can_succeed_later_is_a_failure_and_no_wrong_setting(tmp_path: Path, name: str) -> None:
    number = getattr(errno, name)
    with pytest.raises(TrainerError, match=r"gone: cannot be read: .*; start the run again") as error:
        _read(tmp_path / "gone", OSError(number, os.strerror(number)))
    assert error.value.exit_code == 1


def _read(path: Path, error: OSError | None = None) -> None:
    with reading(path):
        if error is not None:
            raise error
        path.read_bytes()


def _write(path: Path, *, advice: str) -> None:
    with writing(path, advice), replacing(path) as partial:
        partial.write_text("")
