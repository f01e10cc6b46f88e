"""The limits of this process's container on processors and memory, from its control groups (cgroup v1 and v2).

A container's CPU limit is a quota of its control group, which neither the affinity nor the number of CPUs shows. More
threads use the quota up early in each period, and the kernel then stops all of them until the next period. A limit
holds for all groups below it, so the smallest on the path counts.
"""

import errno
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.shared.files import text_if_readable

SELF = Path("/proc/self")
MORE_FILES = "allow more open files (ulimit -n)"
MORE_MEMORY = "allow more memory (ulimit -v, or the container's limit)"
MORE_SHM = "mount an emptyDir of medium Memory there (docker: --shm-size 16g)"
HIGHER_LIMIT = {
    errno.EMFILE: MORE_FILES,
    errno.ENFILE: MORE_FILES,
    errno.EAGAIN: "allow more processes (ulimit -u, or the container's limit)",
    errno.ENOMEM: MORE_MEMORY,
}
"""The next step after a system call that a limit of this process or its container has refused, by error number."""
OUT_OF_MEMORY = (
    r"\bMemoryError\b|([Cc]annot|can't) allocate memory|Memory allocation|failed to map segment|\bbad_alloc\b"
)
"""What Python, the dynamic linker, torch and C++ say when the system refuses them memory."""
MOST_LOADERS = 4
"""Loader processes of a device within its processors, unless the user asks for more."""
_DEFAULT_PERIOD_US = 100_000
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def node_name() -> str:
    """Return the name of the Kubernetes node, or of this machine; a pod's own name is another one each time."""
    return os.environ.get("NODE_NAME") or platform.node()


def usable_processors() -> int:
    """Return how many threads this process and its children can keep busy."""
    return within_quota(len(os.sched_getaffinity(0)), cpu_quota())


def within_quota(cpus: int, quota: float | None) -> int:
    """Return the number of whole CPUs within the quota; at least 1, since half a CPU still takes one thread."""
    return cpus if quota is None else min(cpus, max(1, math.floor(quota)))


def cpu_quota(process: Path = SELF) -> float | None:
    """Return the container's CPU limit in CPUs, such as 0.5; None without a limit.

    Args:
        process: The process's folder in /proc, with `cgroup` and `mountinfo`.
    """
    quotas = []
    for group in _groups("cpu", process):
        words = text_if_readable(group / "cpu.max").split() or [
            *text_if_readable(group / "cpu.cfs_quota_us").split(),
            *text_if_readable(group / "cpu.cfs_period_us").split(),
        ]
        numbers = [int(word) for word in words if word.isdigit()]
        # "max" and -1 stand for no limit.
        if len(numbers) == len(words) > 0 and numbers[0] > 0:
            quotas.append(numbers[0] / (numbers[1] if len(numbers) > 1 and numbers[1] else _DEFAULT_PERIOD_US))
    return min(quotas, default=None)


def memory_bytes(process: Path = SELF) -> int:
    """Return the memory of this machine in bytes, or the container's limit if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", process):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in text_if_readable(group / name).split() if word.isdigit()]
    return min(limits)


def free_memory_bytes(process: Path = SELF, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the memory in bytes that this machine has available, or that the container may still use if that is less.

    Pages of files that were not used lately count as free: the kernel drops them when memory is short.
    """
    available = re.search(r"^MemAvailable:\s*(\d+) kB$", text_if_readable(meminfo), re.MULTILINE)
    free = [int(available[1]) * 1024] if available else [memory_bytes(process)]
    for group in _groups("memory", process):
        # In version 1 only total_ counts the pages of the groups below too.
        statistics = text_if_readable(group / "memory.stat")
        inactive = re.findall(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = (text_if_readable(group / name).strip() for name in (limit, usage))
            if most.isdigit() and used.isdigit():
                free.append(int(most) - int(used) + max(map(int, inactive), default=0))
    return max(0, min(free))


def oom_kills(process: Path = SELF) -> int:
    """Return how many processes of this control group the kernel has killed for want of memory; 0 if unknown."""
    group = next(_groups("memory", process), SELF)
    files = ("memory.events", "memory.oom_control")
    counts = [int(count) for name in files for count in _OOM_KILLS.findall(text_if_readable(group / name))]
    return max(counts, default=0)


def _groups(controller: str, process: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups for a controller, each with all groups above it.

    A hierarchy of version 1 names its controllers in both files, version 2 does not (cgroups(7)).
    """
    groups = {}
    for line in text_if_readable(process / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            groups["cgroup" if controllers else "cgroup2"] = path
    for line in text_if_readable(process / "mountinfo").splitlines():
        place, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind in groups and (kind == "cgroup2" or controller in options.split(",")):
            root, mount = (_unescaped(path) for path in place.split(" ")[3:5])
            yield from _up_to(Path(mount), _below(groups[kind], root))


def _below(group: str, root: str) -> Path:
    """Return a group's path below a mount's root; the root itself if the group lies outside, as in some containers."""
    path = Path(group)
    return path.relative_to(root) if path.is_relative_to(root) and ".." not in path.parts else Path()


def _up_to(mount: Path, group: Path) -> Iterator[Path]:
    yield from (mount / part for part in (group, *group.parents))


def _unescaped(path: str) -> str:
    r"""Return a path of mountinfo, in which a blank is `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
