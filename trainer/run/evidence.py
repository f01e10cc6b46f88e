"""The evidence of the faults of a run, in `evidence/attempt-N/node-K/` of its folder: no end of a pod can take it away.

CANN writes its log there itself, from its first line on, in the layout that Huawei's `ascend-fd parse -i` reads; out of
memory, a worker leaves its memory there (trainer/devices). This module keeps the size within a limit, and adds the
node's environment, and how the workers of a failed attempt ended. It never fails: evidence must not cost a run.
"""

import contextlib
import json
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.records.folder import evidence_folder
from trainer.shared.container import oom_kills
from trainer.shared.files import replacing, text_if_readable
from trainer.supervisor.failure_cause import WorkerEnd

MOST_BYTES = 1 << 30
"""Of a node's evidence of ended attempts, beyond the last one's."""
MOST_TRACE_BYTES = 1 << 26
"""Of the traces of one worker."""
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


def begin_evidence(run: Path, attempt: int, node: int, *, environment: str = "", most_bytes: int = MOST_BYTES) -> Path:
    """Return the folder for a node's evidence of an attempt, after removing the oldest attempts' beyond `most_bytes`.

    The attempt before this one keeps its evidence in any case: CANN limits the size of each.

    Args:
        environment: The content of `environment.json`; empty for no such file.
    """
    folder = evidence_folder(run, attempt, node)
    with contextlib.suppress(OSError):
        earlier = [path for path in folder.parent.parent.glob(f"attempt-*/{folder.name}") if path != folder]
        earlier.sort(key=_attempt_of, reverse=True)
        total = 0
        for path in earlier[1:]:
            total += _size(path)
            if total > most_bytes:
                shutil.rmtree(path, ignore_errors=True)
    if environment:
        _write(folder / "environment.json", environment)
    return folder


def keep_ends(folder: Path, ends: Sequence[WorkerEnd], *, kills_before: int, home: Path) -> None:
    """Write how a failed attempt's workers ended to `ends.json`, and move CANN's traces of them next to it.

    Args:
        kills_before: How often the kernel had killed for want of memory in this container when the attempt began.
        home: The folder below which CANN writes its traces, such as the stacks of a process that has crashed.
    """
    content = {
        "workers": [_facts(end) for end in ends],
        "oom_kills": oom_kills() - kills_before,
        "core_pattern": text_if_readable(_CORE_PATTERN).strip(),
        "core_limit": resource.getrlimit(resource.RLIMIT_CORE)[0],
    }
    _write(folder / "ends.json", json.dumps(content, indent=2))
    for end in ends:
        # `trace_GROUP_PID_TIME`: a worker leads its process group.
        for trace in sorted((home / "ascend/atrace").glob(f"trace_{end.pid}_*")):
            with contextlib.suppress(OSError, shutil.Error):
                if _size(trace) <= MOST_TRACE_BYTES:
                    shutil.move(trace, folder / "atrace" / f"rank-{end.rank}" / trace.name)


def _write(path: Path, text: str) -> None:
    with contextlib.suppress(OSError), replacing(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(f"{text}\n", encoding="utf-8")


def _facts(end: WorkerEnd) -> dict[str, Any]:
    return {
        "rank": end.rank,
        "device": end.device,
        "pid": end.pid,
        "exit_code": end.returncode if end.returncode >= 0 else None,
        "signal": -end.returncode if end.returncode < 0 else None,
        "core_dumped": end.core_dumped,
        "stopped": end.told_to_stop,
        "cause": None if end.returncode == 0 else str(end),
    }


def _attempt_of(path: Path) -> int:
    number = path.parent.name.removeprefix("attempt-")
    return int(number) if number.isdecimal() else 0


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
