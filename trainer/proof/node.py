"""The checks of a node: what `trainer env` finds, the devices' other users, the rank table, and the output's disk.

They load neither torch nor torch_npu. Written from published outputs of npu-smi; not run on a real NPU.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator

from trainer.environment.facts import Facts, read_facts
from trainer.environment.findings import Concern, findings
from trainer.environment.hardware import own_chips
from trainer.environment.npu_smi import TIMEOUT_S
from trainer.proof.check import CheckFunction, CheckOutcome, CheckVerdict, Context
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError
from trainer.topology import discover, visible_devices
from trainer.topology.ports import free_port

_MIB, _GIB = 2**20, 2**30
_MOST_IDLE_MEMORY = 0.2
"""Share of an idle NPU's memory in use: published outputs show 0.01 to 0.09 on chips without a process."""
_USUAL_OPEN_FILES = 1024
_OUTPUT_BYTES = 2 * _GIB
_RANK_TABLE_S = 30.0
"""How long to wait for a rank table that is not complete: prove starts when the user asks for it, not with the pod."""


@functools.cache
def _facts() -> Facts:
    return read_facts(os.environ, npu_smi_timeout_s=TIMEOUT_S)


def _about(concern: Concern, measure: Callable[[Facts], str], expected: str) -> CheckFunction:
    """Return the check that fails if `trainer env` has a problem of this concern; a note does not fail it."""

    def check(context: Context) -> CheckOutcome:
        facts = _facts()
        results = findings(facts, uses_npu=context.place.kind == "npu", concern=concern)
        if problems := [finding.text for finding in results if finding.level == "problem"]:
            return CheckOutcome("failed", "; ".join(problems), expected)
        return CheckOutcome("passed", "; ".join([measure(facts), *(finding.text for finding in results)]), expected)

    return check


def _versions(facts: Facts) -> str:
    versions = {**facts.packages, "CANN": facts.cann, "driver": facts.driver, "Python": facts.python}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)


def _libraries(facts: Facts) -> str:
    return ", ".join(name for name, present in facts.libraries.items() if present) or "none is needed"


def _health(facts: Facts) -> str:
    chips = facts.npu_smi.chips if facts.npu_smi else ()
    return ", ".join(f"NPU {chip.npu} chip {chip.chip} {chip.health}" for chip in chips) or "npu-smi shows no NPU"


def _settings(facts: Facts) -> str:
    return " ".join(f"{name}={value}" for name, value in facts.variables.items()) or "all by default"


def _shared_memory(facts: Facts) -> str:
    return "none" if facts.shm_bytes is None else f"{facts.shm_bytes / _MIB:,.0f} MiB"


def _processors(facts: Facts) -> str:
    return f"{facts.processors} of {facts.machine_cpus} processors"


prove_versions = _about("versions", _versions, "versions that go together, by torch_npu's README")
prove_libraries = _about("libraries", _libraries, "the driver's and CANN's libraries in LD_LIBRARY_PATH")
prove_health = _about("health", _health, "health OK, by npu-smi")
prove_network = _about("network", lambda facts: str(facts.hccn or "not needed"), "an address of each NPU in hccn.conf")
prove_settings = _about("settings", _settings, "HCCL's and the allocator's settings within their documented bounds")
prove_shared_memory = _about("shared memory", _shared_memory, "1 GiB in /dev/shm for the batches of loader processes")
prove_processors = _about("processors", _processors, "2 processors for each NPU, and no more threads than processors")


def prove_open_files(_context: Context) -> CheckOutcome:
    """Compare the limit of open files with the usual one; below it, a few loader processes can already be too many."""
    facts = _facts()
    notes = findings(facts, concern="open files")
    measured = "; ".join(finding.text for finding in notes) or f"{facts.open_files}"
    verdict: CheckVerdict = "failed" if 0 <= facts.open_files < _USUAL_OPEN_FILES else "passed"
    return CheckOutcome(verdict, measured, f"{_USUAL_OPEN_FILES}, the usual limit of a Linux process")


def prove_visible_devices(context: Context) -> CheckOutcome:
    """Compare the variable of the visible devices with the device files."""
    outcome = _about("visible devices", lambda _facts: "", "each device once, in ascending order")(context)
    if outcome.verdict != "passed":
        return outcome
    visible = visible_devices(context.place.kind, os.environ)
    ids = " ".join(map(str, visible.ids))
    return CheckOutcome("passed", f"{visible.kind} {ids}, by {visible.found_in}", outcome.expected)


def prove_unused_devices(context: Context) -> CheckOutcome:
    """Look for another process on this node's NPUs, by npu-smi's table of processes, and by the memory in use."""
    facts = _facts()
    if facts.npu_smi is None:
        why = f": {facts.npu_smi_error}" if facts.npu_smi_error else ""
        return CheckOutcome("impossible", f"npu-smi does not tell{why}")
    users = list(_users(facts, visible_devices("npu", os.environ).ids))
    if users:
        advice = (
            "end what `npu-smi info` shows there, or ask for other devices: it slows down each check, and takes the "
            "memory"
        )
        return CheckOutcome("failed", "; ".join(users), "no other process on these devices", advice)
    return CheckOutcome("passed", "no process", "no other process on these devices, by npu-smi")


def _users(facts: Facts, ids: tuple[int, ...]) -> Iterator[str]:
    """Yield a text for each device that is in use; npu-smi hides the processes of other containers.

    The report is for people outside, so the text does not name the processes, which can be another user's.
    """
    assert facts.npu_smi is not None
    for index, chip in own_chips(facts.npu_smi.chips, ids).items():
        own = (chip.npu, chip.chip)
        if count := sum((process.npu, process.chip) == own for process in facts.npu_smi.processes):
            yield f"npu:{index} is in use by {count} process{'es' if count > 1 else ''}"
        elif chip.memory_mib and (chip.memory_used_mib or 0) > _MOST_IDLE_MEMORY * chip.memory_mib:
            yield f"npu:{index}: {chip.memory_used_mib} of {chip.memory_mib} MiB are in use by an unknown process"


def prove_rank_table(context: Context) -> CheckOutcome:
    """Find this node in its rank table, and compare the table's devices with the visible ones."""
    expected = "an entry for this pod, with as many devices as are visible here"
    outcome = _about("rank table", lambda _facts: "", expected)(context)
    if outcome.verdict != "passed":
        return outcome
    visible = visible_devices(context.place.kind, os.environ)
    try:
        # Another port than the usual one, on which node 0 of a job listens for the other nodes.
        config = TrainConfig(rank_table_timeout_s=_RANK_TABLE_S, master_port=free_port())
        topology = discover(config, os.environ, visible=visible, scratch=context.folder, on_status=context.mark)
    except TrainerError as error:
        return CheckOutcome("failed", str(error), expected)
    if topology.rank_table is None:
        return CheckOutcome("impossible", f"there is no rank table: the ranks come from the {topology.source}")
    here = ", ".join(f"rank {worker.rank} on device {worker.device_id}" for worker in topology.workers)
    return CheckOutcome("passed", f"{here} of {topology.world_size} ranks", expected)


def prove_output_disk(context: Context) -> CheckOutcome:
    """Write and sync 1 MiB in the output folder, and compare the free space with two checkpoints."""
    expected = "2 GiB, for two checkpoints of pnasnet5large with average and momentum"
    path = context.output / f".prove-{os.getpid()}"
    try:
        context.output.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(os.urandom(_MIB))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(context.output).free
    except OSError as error:
        reason = f"{context.output}: cannot be written: {error.strerror}"
        return CheckOutcome("failed", reason, expected, "free space, or choose another --output")
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    measured = f"{context.output}: {free / _GIB:.1f} GiB free"
    if free < _OUTPUT_BYTES:
        return CheckOutcome("failed", measured, expected, "free space, or choose another --output")
    return CheckOutcome("passed", measured, expected, figures={"free_gib": free / _GIB})
