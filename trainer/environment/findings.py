"""Which facts do not fit together: each finding is one line that says what is wrong, where, and what to do.

A problem keeps a run from starting, makes it fail later, or makes it slow without any message. A note is information.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from trainer.devices.runtime_env import HCCL_EXEC_TIMEOUT_S, HCCL_SHORTEST_CONNECT_S, hccl_seconds, openmp_threads
from trainer.environment.facts import SILENT, Facts
from trainer.environment.parsing import parse_settings
from trainer.environment.versions import cann_of, same_release, supported_with, torch_of
from trainer.shared.container import MORE_FILES, MORE_SHM
from trainer.shared.errors import UsageError
from trainer.topology.visible import NOT_ASCENDING

# Docker's and Kubernetes' default is 64 MiB: less than a few batches of images at 331 px.
_SMALLEST_SHM_BYTES = 2**30
_MANY_OPEN_FILES = 4096
FEWEST_OPEN_FILES = 64
"""With fewer, libraries end a worker at any place, some of them without a reason."""
# The bounds and defaults of HCCL's documentation (hccl_env).
_CONNECT_TIMEOUT_S = range(HCCL_SHORTEST_CONNECT_S, 7201)
_RANK_TABLE_CONNECT_TIMEOUT_S = 300
_EVENT_TIMEOUT_S = 1868


@dataclass(frozen=True)
class EnvironmentFinding:
    """One line."""

    level: Literal["problem", "note"]
    text: str


_problem, _note = partial(EnvironmentFinding, "problem"), partial(EnvironmentFinding, "note")


Concern = Literal[
    "versions",
    "libraries",
    "health",
    "processes",
    "network",
    "processors",
    "visible devices",
    "settings",
    "rank table",
    "shared memory",
    "open files",
]
"""The subject of a finding."""


def findings(facts: Facts, *, uses_npu: bool = True, concern: Concern | None = None) -> list[EnvironmentFinding]:
    """Return all findings, or the findings of one concern, problems first.

    Args:
        facts: The facts as the run's workers see them.
        uses_npu: Whether the run uses NPUs; others concern only such a run.
        concern: The subject; None for all.
    """
    unsorted = (
        finding
        for subject, check in _checks(facts, uses_npu=uses_npu)
        if concern in (None, subject)
        for finding in check(facts)
    )
    return sorted(unsorted, key=lambda finding: finding.level != "problem")


def _checks(
    facts: Facts, *, uses_npu: bool
) -> Iterator[tuple[Concern, Callable[[Facts], Iterator[EnvironmentFinding]]]]:
    if uses_npu and facts.emulated and facts.cann_home is None:
        yield "versions", _emulated
    elif uses_npu:
        yield "versions", _torch_npu
        yield "versions", _cann
        yield "libraries", _libraries
        yield "libraries", _driver
        yield "health", _devices
        yield "processes", _processes
        yield "network", _network
        yield "processors", _processors
    if uses_npu:
        yield "visible devices", _visible
        yield "settings", _timeouts
        yield "rank table", _rank_table
        yield "settings", _settings
    yield "shared memory", _shared_memory
    yield "open files", _open_files
    yield "processors", _threads


def _torch_npu(facts: Facts) -> Iterator[EnvironmentFinding]:
    torch_npu, torch = facts.packages.get("torch-npu"), facts.packages.get("torch")
    if torch_npu is None:
        if facts.has_npu:
            versions = supported_with(facts.cann) if facts.cann else ()
            package = (
                f"torch-npu=={versions[0]}, which goes with this CANN" if versions else "the one for this node's CANN"
            )
            yield _problem(f"there are NPUs, but no torch_npu: install {package}")
        return
    matching = torch_of(torch_npu)
    if torch is not None and torch.partition("+")[0] != matching:
        # torch_npu's wheels for x86 need the build that only this index has.
        build = "+cpu, from download.pytorch.org/whl/cpu" if facts.machine == "x86_64" else ""
        yield _problem(f"torch_npu {torch_npu} is for torch {matching}, not {torch}: install torch=={matching}{build}")


def _cann(facts: Facts) -> Iterator[EnvironmentFinding]:
    torch_npu = facts.packages.get("torch-npu")
    if facts.unsourced and (torch_npu or facts.has_npu):
        yield _problem(f"CANN is installed but not set up: source {facts.unsourced}/set_env.sh before the trainer")
    elif facts.cann_home and facts.cann is None:
        yield _problem(f"ASCEND_HOME_PATH={facts.cann_home} holds no CANN: source the set_env.sh of the installed one")
    elif facts.cann is None and torch_npu:
        yield _problem("there is torch_npu, but no CANN: use an image of quay.io/ascend/cann, or install its toolkit")
    elif facts.cann and torch_npu:
        yield from _cann_with(facts.cann, torch_npu)


def _cann_with(cann: str, torch_npu: str) -> Iterator[EnvironmentFinding]:
    matching = cann_of(torch_npu)
    if matching is None:
        yield _note(f"torch_npu {torch_npu} is not in this program's table: see its README for its CANN")
    elif not same_release(matching, cann):
        versions = supported_with(cann)
        instead = f", or install torch-npu=={versions[0]} with torch=={torch_of(versions[0])}" if versions else ""
        yield _problem(f"torch_npu {torch_npu} is for CANN {matching}, not {cann}: use CANN {matching}{instead}")


def _libraries(facts: Facts) -> Iterator[EnvironmentFinding]:
    if not (facts.packages.get("torch-npu") and facts.cann_home):
        return
    causes = {
        "libascend_hal.so": "the driver is not in this container: make Ascend Docker Runtime the node's runtime, or "
        "mount /usr/local/Ascend/driver",
        "libhccl.so": f"CANN is not set up: source {facts.cann_home}/set_env.sh, or its parent's",
    }
    for library, cause in causes.items():
        if not facts.libraries.get(library, False):
            yield _problem(f"{library} is in no folder of LD_LIBRARY_PATH: {cause}")


def _driver(facts: Facts) -> Iterator[EnvironmentFinding]:
    if facts.has_npu and facts.driver is None:
        yield _note(
            "the driver's version is unknown: /usr/local/Ascend/driver/version.info does not exist here; mount it to "
            "see it in reports"
        )


def _devices(facts: Facts) -> Iterator[EnvironmentFinding]:
    if facts.npu_smi_error is not None and facts.npu_smi_error.startswith(SILENT):
        yield _note(f"npu-smi info gives {facts.npu_smi_error}: run it by hand to see the NPUs' health")
    elif facts.npu_smi_error is not None:
        busy = any(code in facts.npu_smi_error for code in ("-8005", "-8020", "busy", "is used"))
        what = "another container holds the NPUs: end it" if busy else "see whether the driver is mounted and loaded"
        yield _problem(f"npu-smi info fails: {facts.npu_smi_error}: {what}")
    if facts.npu_smi is None:
        return
    if not facts.device_files:
        yield _problem("npu-smi shows NPUs, but there is no /dev/davinci*: request them from Kubernetes (or --device)")
    for chip in facts.npu_smi.chips:
        if chip.health != "OK":
            yield _problem(
                f"NPU {chip.npu} chip {chip.chip} ({chip.name}, {chip.bus}) has health {chip.health}: see npu-smi info "
                f"-t health -i {chip.npu}, and take it out of the node's allocatable devices"
            )


def _processes(facts: Facts) -> Iterator[EnvironmentFinding]:
    for process in facts.npu_smi.processes if facts.npu_smi else ():
        yield _note(
            f"NPU {process.npu} chip {process.chip} is in use by process {process.pid} ({process.name or 'no name'})"
        )


def _visible(facts: Facts) -> Iterator[EnvironmentFinding]:
    value = facts.variables.get("ASCEND_RT_VISIBLE_DEVICES")
    if value is None or not facts.device_files:
        return
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        yield _problem(
            f"ASCEND_RT_VISIBLE_DEVICES={value}: the runtime reads it up to the first word that is no number"
        )
        return
    ids = list(map(int, parts))
    if ids != sorted(set(ids)):
        yield _problem(f"ASCEND_RT_VISIBLE_DEVICES={value}: {NOT_ASCENDING}")
    elif ids[-1] >= len(facts.device_files):
        last = len(facts.device_files) - 1
        yield _problem(
            f"ASCEND_RT_VISIBLE_DEVICES={value}: this container has NPUs 0 to {last}, by its own numbers: name those"
        )


def _network(facts: Facts) -> Iterator[EnvironmentFinding]:
    if not facts.has_npu:
        return
    if facts.hccn is None:
        yield _note("no /etc/hccn.conf here: mount it if several nodes train without a rank table")
        return
    unnamed = [number for number in facts.device_files if number not in facts.hccn]
    if unnamed:
        names = ", ".join(map(str, unnamed))
        yield _problem(f"/etc/hccn.conf has no address for NPU {names}: hccn_tool -i N -ip -s address A netmask M")


def _timeouts(facts: Facts) -> Iterator[EnvironmentFinding]:
    defaults = {
        "HCCL_CONNECT_TIMEOUT": _CONNECT_TIMEOUT_S.start,
        "HCCL_EXEC_TIMEOUT": HCCL_EXEC_TIMEOUT_S,
        "HCCL_EVENT_TIMEOUT": _EVENT_TIMEOUT_S,
    }
    try:
        values = {name: hccl_seconds(name, facts.variables) for name in defaults}
    except UsageError as error:
        yield _problem(str(error))
        return
    connect, execute, event = (defaults[name] if value is None else value for name, value in values.items())
    if connect not in _CONNECT_TIMEOUT_S:
        yield _problem(f"HCCL_CONNECT_TIMEOUT={connect} is not within 120 to 7200 s: correct or unset it")
    if 0 < execute <= connect:
        yield _problem(f"HCCL_EXEC_TIMEOUT={execute} is not longer than HCCL_CONNECT_TIMEOUT={connect}: raise it")
    if execute > 0 and event <= execute:
        yield _problem(f"HCCL_EVENT_TIMEOUT={event} is not longer than HCCL_EXEC_TIMEOUT={execute}: raise it")
    if facts.rank_table is not None and connect < _RANK_TABLE_CONNECT_TIMEOUT_S:
        yield _note(f"HCCL_CONNECT_TIMEOUT={connect}: with a rank table torch_npu advises 300 s or more")


def _rank_table(facts: Facts) -> Iterator[EnvironmentFinding]:
    path = facts.variables.get("RANK_TABLE_FILE")
    if facts.rank_table == "missing":
        yield _problem(f"RANK_TABLE_FILE={path}: no such file: mount the rank table there, or unset it")
    if facts.rank_table == "link":
        yield _note(f"RANK_TABLE_FILE={path} is a link, which torch_npu ignores: the trainer gives it a copy")


def _settings(facts: Facts) -> Iterator[EnvironmentFinding]:
    if facts.variables.get("ASCEND_LAUNCH_BLOCKING") == "1":
        yield _note("ASCEND_LAUNCH_BLOCKING=1 waits for each operator, for debugging: unset it to train")
    pairs = facts.variables.get("PYTORCH_NPU_ALLOC_CONF", "")
    for name, value in parse_settings(pairs).items():
        if not value:
            yield _problem(f"PYTORCH_NPU_ALLOC_CONF={pairs}: {name} has no value: write {name}:VALUE")


def _shared_memory(facts: Facts) -> Iterator[EnvironmentFinding]:
    if not facts.shm_writable:
        yield _problem(f"/dev/shm cannot be written, so no loader process can start: {MORE_SHM}, or set --workers 0")
    elif facts.shm_bytes is not None and facts.shm_bytes < _SMALLEST_SHM_BYTES:
        yield _problem(
            f"/dev/shm has {facts.shm_bytes / 2**20:.3g} MiB, too few for loader workers, which then use slower pipes: "
            f"{MORE_SHM}, or set --workers 0"
        )


def _open_files(facts: Facts) -> Iterator[EnvironmentFinding]:
    if 0 <= facts.open_files < FEWEST_OPEN_FILES:
        yield _problem(f"{facts.open_files} open files are too few for a run: {MORE_FILES}")
    elif 0 <= facts.open_files < _MANY_OPEN_FILES:
        yield _note(
            f"{facts.open_files} files can be open at once; many loader workers need more: ulimit -n "
            f"{min(facts.open_files_hard, 65536) if facts.open_files_hard > 0 else 65536}"
        )


def _processors(facts: Facts) -> Iterator[EnvironmentFinding]:
    if facts.has_npu and facts.processors < 2 * len(facts.device_files):
        yield _problem(
            f"{facts.processors} of {facts.machine_cpus} processors for {len(facts.device_files)} NPUs: they will wait "
            "for data; request more (launching operators takes one for each NPU)"
        )


def _threads(facts: Facts) -> Iterator[EnvironmentFinding]:
    try:
        threads = openmp_threads(facts.variables)
    except UsageError as error:
        yield _problem(str(error))
        return
    if threads is not None and int(threads.split(",")[0]) > facts.processors:
        limit = "" if facts.cpu_quota is None else f" (the container's limit is {facts.cpu_quota:g} CPUs)"
        yield _problem(
            f"OMP_NUM_THREADS={threads}, but there is room for {facts.processors} threads{limit}: they will slow each "
            "other down; lower or unset it"
        )


def _emulated(_facts: Facts) -> Iterator[EnvironmentFinding]:
    yield _note("the NPUs are emulated: this machine's CPU computes, with other numbers and speed than an NPU")
