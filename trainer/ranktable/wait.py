"""Wait until the rank table is completed and is this pod's, and write it to a file that HCCL can read.

A ConfigMap reaches its volume up to two minutes after the controller wrote it. Before that, the volume can show a dead
job's table, marked completed. So "not completed", "not this pod's" and "another number of devices" mean "wait"; only a
wrong table that names this pod is final.
"""

from collections.abc import Callable
from pathlib import Path

from trainer.ranktable.identity import Identity, find_me
from trainer.ranktable.table import NotJsonError, NotReadyError, RankTable, parse
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import read_file, replacing

_POLL_S = 1.0  # a ConfigMap volume changes once a minute; a file on shared storage is cheap to read


def wait_until_completed(
    path: Path,
    *,
    expected_devices: int | None,
    identity: Identity,
    timeout_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    on_status: Callable[[str], None],
) -> tuple[RankTable, bytes]:
    """Poll `path` until it holds a completed, valid table with this pod in it.

    Args:
        expected_devices: The number of devices of the whole job, or None if only the table knows.
        on_status: Called once for each change of the reason to wait.

    Returns:
        The table, and the bytes that it was read from: a moment later the file may be another one.

    Raises:
        UsageError: The file cannot be read, or the table is this pod's and invalid.
        TrainerError: The time is up; the message has the last reason to wait. This is no UsageError, so that the job
            can be retried: the controller that writes the table may be back by then.
    """
    deadline = clock() + timeout_s
    last_reason = ""
    while True:
        try:
            return _read(path, expected_devices, identity)
        except NotReadyError as error:
            reason = str(error)
        remaining = deadline - clock()
        if remaining <= 0:
            raise TrainerError(
                f"rank table {path}: not completed within {timeout_s:g} s: {reason}; "
                "see the job's controller, or wait longer with --rank-table-timeout-s"
            )
        if reason != last_reason:
            on_status(f"waiting for rank table {path}: {reason}")
            last_reason = reason
        sleep(min(_POLL_S, remaining))


def _read(path: Path, expected_devices: int | None, identity: Identity) -> tuple[RankTable, bytes]:
    """Return the table and its bytes; every reason to wait is a NotReadyError."""
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise NotReadyError("no such file") from None
    except OSError as error:
        # Waiting does not help; the operator makes a `ranktable` volume's folder mode 0744.
        raise UsageError(
            f"rank table {path}: cannot be read: {error.strerror}; check its and its folder's mode"
        ) from error
    text = content.decode(errors="replace")
    try:
        table = parse(text)
    except NotReadyError:
        raise
    except NotJsonError as error:
        raise UsageError(f"rank table {path}: {error}") from error
    except UsageError as error:
        if identity.names and not any(f'"{name}"' in text for name in identity.names.values()):
            raise NotReadyError(f"{error} (and it does not name this pod)") from error
        raise UsageError(f"rank table {path}: {error}") from error
    if expected_devices is not None and table.world_size != expected_devices:
        raise NotReadyError(
            f"it has {table.world_size} devices, not {expected_devices} (WORLD_SIZE, or --nodes and --npus)"
        )
    try:
        find_me(table, identity)
    except UsageError as error:
        raise NotReadyError(str(error)) from error
    return table, content


def write_regular(content: bytes, destination: Path) -> Path:
    """Write a table to the regular file `destination` (mode 0400), which no reader ever sees half written.

    torch_npu accepts no symlink: it says so only at log level INFO, and negotiates without the table. Every file of a
    ConfigMap volume is a symlink (torch_npu/csrc/distributed/HCCLUtils.cpp, checkFilePathReadable).

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        with replacing(destination, mode=0o400) as partial:
            partial.unlink(missing_ok=True)  # a killed writer may have left one that cannot be written to
            partial.write_bytes(content)
    except OSError as error:
        raise UsageError(f"the rank table cannot be copied to {destination}: {error.strerror}") from error
    return destination
