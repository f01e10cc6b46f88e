"""The output folder of a run: OUT/<run>/ with its settings and one sub-folder per device.

A run never writes into another run's folder. If the given name is taken, the run is refused; a generated name gets a
number. Each attempt of a continued run has its own config, provenance and console files; all attempts share the others.
"""

import contextlib
import errno
import re
import time
from collections.abc import Iterable
from pathlib import Path

from trainer.shared.attempts import attempt_file
from trainer.shared.config import TrainConfig
from trainer.shared.errors import FolderTakenError, UsageError
from trainer.shared.files import replacing, writing
from trainer.shared.yaml_text import to_yaml

_OF_ATTEMPT = re.compile(r"(?:attempt|config|provenance|console)(?:-(\d+))?\.(?:yaml|json|log)")


def create_run_folder(config: TrainConfig, *, is_first_node: bool, is_single_node: bool, now: float) -> Path:
    """Make this run's folder and keep its settings in `config.yaml`.

    Args:
        is_first_node: This process starts rank 0 and claims the folder for its job: only it writes the settings.
        is_single_node: This process starts every rank, so it can choose the name; no other process of the job has
            made the folder.
        now: Seconds since the epoch, for a generated name.

    Raises:
        FolderTakenError: `--run-name` names a folder that exists.
        UsageError: The folder cannot be created or written.
    """
    if config.run_name is None and not is_single_node:
        raise UsageError(
            "--run-name is needed where several processes start a job's ranks, so that all of them write to one folder"
        )
    try:
        _make_output(config.output)
        folder = _make(config, is_single_node=is_single_node, now=now)
        if is_first_node:
            write_config(folder, config, attempt=1)
    except FileExistsError as error:
        raise FolderTakenError(
            f"--run-name {config.run_name}: {config.output / str(config.run_name)} exists and a run never overwrites "
            "another: choose another name, or continue it with --resume auto"
        ) from error
    except OSError as error:
        reason = f"cannot be written: {error.strerror}: choose a folder that this user may write"
        if error.errno == errno.ENOSPC:
            reason = "no space left: free some, or choose another folder"
        raise UsageError(f"--output {config.output}: {reason}") from error
    return folder.resolve()


def write_config(run: Path, config: TrainConfig, *, attempt: int) -> None:
    """Write an attempt's settings. If that fails, remove the file and the empty folder, so that the name stays free.

    Raises:
        FileExistsError: Another process began the attempt.
        OSError: The folder cannot be written.
    """
    path = attempt_file(run / "config.yaml", attempt)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(to_yaml(config.model_dump(mode="json")))
    except OSError as error:
        if not isinstance(error, FileExistsError):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                run.rmdir()
        raise


def replace_config(run: Path, config: TrainConfig, *, attempt: int) -> None:
    """Write an attempt's settings again, with the settings that only its processes know.

    Raises:
        TrainerError: The file cannot be written.
    """
    path = attempt_file(run / "config.yaml", attempt)
    with writing(path), replacing(path) as partial:
        partial.write_text(to_yaml(config.model_dump(mode="json")), encoding="utf-8")


def next_attempt(run: Path, ranks: Iterable[int], *, is_first_node: bool) -> int:
    """Return the number of the attempt that is about to begin, by the files of the earlier ones.

    Args:
        ranks: The ranks that this process starts: other ranks' files may already belong to the same attempt.
        is_first_node: This process starts rank 0, so it writes the files that exist once per attempt, not per rank.
    """
    names = [name for rank in ranks for name in _names(run / str(rank))]
    if is_first_node:
        names += _names(run)
    return 1 + max((int(match[1] or 1) for name in names if (match := _OF_ATTEMPT.fullmatch(name))), default=0)


def device_folder(run: Path, rank: int) -> Path:
    """Return the sub-folder of the device with this rank; on one node the rank is the seed's device id."""
    folder = run / str(rank)
    with writing(folder):
        folder.mkdir(exist_ok=True)
    return folder


def console_log(run: Path, rank: int, attempt: int) -> Path:
    """Return the file with every numbered line that a rank printed; each attempt of a run has one."""
    return device_folder(run, rank) / f"console-{attempt}.log"


def evidence_folder(run: Path, attempt: int, node: int) -> Path:
    """Return the folder for what one node's devices and processes leave about faults; each attempt has its own."""
    return run / "evidence" / f"attempt-{attempt}" / f"node-{node}"


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _make(config: TrainConfig, *, is_single_node: bool, now: float) -> Path:
    if config.run_name is not None:
        folder = config.output / config.run_name
        folder.mkdir(exist_ok=not is_single_node)
        return folder
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    # Weights bring their model along, and are not read yet.
    is_known = config.weights is None or "model" in config.model_fields_set
    base = f"{config.mode}-{config.model}-{stamp}" if is_known else f"{config.mode}-{stamp}"
    for number in range(1, 1000):
        folder = config.output / (base if number == 1 else f"{base}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise UsageError(f"--output {config.output}: a thousand runs began in this second; name yours with --run-name")


def _make_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"--output {output}: is a file: choose a folder") from error
