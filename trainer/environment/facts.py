"""Read the facts about this machine from files, the environment and npu-smi, in at most a few seconds."""

import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.environment.parsing import NpuSmi, parse_hccn, parse_npu_smi, parse_version
from trainer.records.provenance import installed_versions
from trainer.shared.container import cpu_quota, within_quota
from trainer.shared.files import text_if_readable
from trainer.topology.visible import FOLDER_VARIABLE, visible_devices

_PACKAGES = ("pnas", "torch", "torch-npu", "apex", "torchvision")
# CANN, HCCL and torch_npu read these; CPU_AFFINITY_CONF and OMP_NUM_THREADS divide a node's processors.
_PREFIXES = ("ASCEND_", "HCCL_", "ACL_", "PYTORCH_NPU_", "TORCH_HCCL_", "TORCH_NPU_", "INF_NAN_", "MASTER_")
_VARIABLES = (
    *("TASK_QUEUE_ENABLE", "COMBINED_ENABLE", "CPU_AFFINITY_CONF", "RANK_TABLE_FILE", "OMP_NUM_THREADS"),
    *("ALLOW_INTERNAL_FORMAT", "PER_STREAM_QUEUE", "ACLNN_CACHE_LIMIT", "MULTI_STREAM_MEMORY_REUSE", "LD_PRELOAD"),
    "GLOO_SOCKET_IFNAME",
)
# Without one of these, the driver's and CANN's, `import torch_npu` fails.
_LIBRARIES = ("libascend_hal.so", "libhccl.so")
SILENT = "no answer within"
_NPU_SMI = "/usr/local/bin/npu-smi"
# Several seconds on a node with many busy NPUs; the whole report takes at most five.
_NPU_SMI_TIMEOUT_S = 4.0


@dataclass(frozen=True)
class Facts:
    """The facts; None or empty for what does not exist."""

    packages: Mapping[str, str]
    python: str
    machine: str
    cann: str | None = None
    cann_home: str | None = None
    unsourced: str | None = None
    """CANN's folder, if CANN is installed and its set_env.sh has not been sourced."""
    driver: str | None = None
    libraries: Mapping[str, bool] = field(default_factory=dict)
    device_files: tuple[int, ...] = ()
    npu_smi: NpuSmi | None = None
    npu_smi_error: str | None = None
    hccn: Mapping[int, str] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    rank_table: str | None = None
    """The kind of RANK_TABLE_FILE: `file`, `link` or `missing`."""
    shm_bytes: int | None = None
    shm_free_bytes: int | None = None
    shm_writable: bool = True
    open_files: int = 0
    open_files_hard: int = 0
    cpus: tuple[int, ...] = ()
    """The CPUs of this process's affinity."""
    machine_cpus: int = 1
    cpu_quota: float | None = None
    """The container's CPU limit, in CPUs."""

    @property
    def emulated(self) -> bool:
        """Whether the NPUs are emulated by tests/npu on this machine's CPU."""
        return self.packages.get("torch-npu", "").endswith("+emulated")

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of the software that is there."""
        versions = {**self.packages, "python": self.python, "cann": self.cann, "driver": self.driver}
        return {name: version for name, version in versions.items() if version is not None}

    @property
    def processors(self) -> int:
        """The number of CPUs that a run can keep busy."""
        return within_quota(len(self.cpus), self.cpu_quota)

    @property
    def has_npu(self) -> bool:
        """Whether there are NPUs, by their device files or by npu-smi."""
        return bool(self.device_files or (self.npu_smi and self.npu_smi.chips))


def read_facts(
    environ: Mapping[str, str], root: Path = Path("/"), *, npu_smi_timeout_s: float | None = _NPU_SMI_TIMEOUT_S
) -> Facts:
    """Read the facts about this machine.

    Args:
        environ: The environment that a run would have.
        root: The root of the file system; tests give another than `/`.
        npu_smi_timeout_s: How long npu-smi can take, mostly a second or more; None leaves it out.
    """
    home = environ.get("ASCEND_HOME_PATH") or environ.get("ASCEND_TOOLKIT_HOME")
    npu_smi, error = (None, None) if npu_smi_timeout_s is None else _npu_smi(environ, npu_smi_timeout_s)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shm, free = _space(root / "dev/shm")
    return Facts(
        packages=installed_versions(_PACKAGES),
        python=platform.python_version(),
        machine=platform.machine(),
        cann=_cann(Path(home)) if home else None,
        cann_home=home,
        unsourced=None if home else _unsourced(root),
        driver=parse_version(text_if_readable(root / "usr/local/Ascend/driver/version.info")),
        libraries={name: _loadable(name, environ) for name in _LIBRARIES},
        device_files=visible_devices("npu", {}, Path(environ.get(FOLDER_VARIABLE, root / "dev"))).ids,
        npu_smi=npu_smi,
        npu_smi_error=error,
        hccn=parse_hccn(text_if_readable(root / "etc/hccn.conf")) if (root / "etc/hccn.conf").exists() else None,
        variables={name: environ[name] for name in sorted(environ) if name.startswith(_PREFIXES) or name in _VARIABLES},
        rank_table=_kind_of(environ.get("RANK_TABLE_FILE")),
        shm_bytes=shm,
        shm_free_bytes=free,
        shm_writable=os.access(root / "dev/shm", os.W_OK),
        open_files=soft,
        open_files_hard=hard,
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        machine_cpus=os.cpu_count() or 1,
        cpu_quota=cpu_quota(root / "proc/self"),
    )


def _cann(home: Path) -> str | None:
    """Read `<home>/aarch64-linux/ascend_toolkit_install.info`; nnae has no toolkit, but its own file of this form."""
    for path in sorted(home.glob("*-linux/ascend_*_install.info"), key=lambda path: "toolkit" not in path.name):
        if version := parse_version(text_if_readable(path)):
            return version
    return None


def _unsourced(root: Path) -> str | None:
    folders = (root / "usr/local/Ascend" / name for name in ("cann", "ascend-toolkit", "nnae"))
    return next((str(folder) for folder in folders if (folder / "set_env.sh").exists()), None)


def _loadable(library: str, environ: Mapping[str, str]) -> bool:
    folders = (Path(folder) for folder in environ.get("LD_LIBRARY_PATH", "").split(":") if folder)
    return any((folder / library).exists() for folder in folders)


def find_npu_smi(environ: Mapping[str, str]) -> str | None:
    """Return the path of npu-smi."""
    return shutil.which("npu-smi", path=environ.get("PATH")) or shutil.which(_NPU_SMI)


def _npu_smi(environ: Mapping[str, str], timeout_s: float) -> tuple[NpuSmi | None, str | None]:
    program = find_npu_smi(environ)
    if program is None:
        return None, None
    try:
        done = subprocess.run(
            [program, "info"], capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"{SILENT} {timeout_s:g} s"
    except OSError as error:
        return None, str(error)
    report = parse_npu_smi(done.stdout)
    if done.returncode == 0 and report.chips:
        return report, None
    words = " ".join((done.stderr + done.stdout).split())
    return None, words[:200] or f"exit code {done.returncode}"


def _kind_of(path: str | None) -> str | None:
    if not path:
        return None
    return "link" if Path(path).is_symlink() else "file" if Path(path).is_file() else "missing"


def _space(folder: Path) -> tuple[int | None, int | None]:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None, None
    return usage.total, usage.free
