"""`python -m trainer env`: print the facts about this machine, and what does not fit together for a run."""

import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cyclopts import App

from trainer.commands import AsJson
from trainer.devices.runtime_env import hccl_timeouts
from trainer.environment.facts import Facts, read_facts
from trainer.environment.findings import EnvironmentFinding, findings
from trainer.shared.config import TrainConfig
from trainer.shared.documents import document, json_text, to_json
from trainer.shared.errors import UsageError
from trainer.shared.text import visible

env_app = App(name="env")


@env_app.default
def env(*, as_json: AsJson = False) -> int:
    """Report this machine's facts and each problem with its solution; exit code 1 if there is a problem.

    It loads neither torch nor torch_npu, so that it works where they cannot be loaded. Without an NPU it says so. The
    settings come from the environment; a run with default options sets the missing ones, and the report judges both.
    """
    facts = read_facts(os.environ)
    results = findings(worker_environment(facts, TrainConfig().stall_timeout_s))
    if as_json:
        print(environment_report(facts, results))
    else:
        judged = [f"{finding.level}: {finding.text}" for finding in results] or ["everything fits together"]
        print("\n".join(map(visible, [*_lines(facts), "", *judged])))
    sys.stdout.flush()
    return int(any(finding.level == "problem" for finding in results))


def worker_environment(facts: Facts, stall_timeout_s: float) -> Facts:
    """Return the facts as workers see them: with the trainer's timeouts if the environment sets none for HCCL."""
    try:
        defaults = hccl_timeouts(stall_timeout_s, facts.variables)
    except UsageError:  # `findings` reports it, too
        return facts
    return replace(facts, variables={**facts.variables, **defaults})


def environment_report(facts: Facts, results: Sequence[EnvironmentFinding]) -> str:
    """Return the facts and the findings as a document for programs."""
    return json_text(document("Environment", **to_json(facts), findings=to_json(results)))


def findings_of_run(facts: Facts, *, device: str, workers: int | None) -> list[EnvironmentFinding]:
    """Return the findings that concern a run.

    Args:
        facts: The facts as the run's workers see them.
        device: `npu`, `cuda` or `cpu`; other devices of this machine do not concern the run.
        workers: Loader processes of each device, None for the default; with 0, /dev/shm need not hold their batches.
    """
    if workers == 0:
        facts = replace(facts, shm_bytes=None, shm_writable=True)
    return findings(facts, uses_npu=device == "npu")


def environment_summary(facts: Facts, results: Sequence[EnvironmentFinding], *, device: str) -> Iterator[str]:
    """Yield the first lines of a run: one line of versions, and a line for each problem that it would have."""
    versions = {"torch": facts.packages.get("torch"), "python": facts.python, "cpus": str(facts.processors)}
    if device == "npu":
        versions |= {"torch_npu": facts.packages.get("torch-npu"), "cann": facts.cann, "driver": facts.driver}
        versions |= {"apex": facts.packages.get("apex"), "npus": str(len(facts.device_files))}
    yield " ".join(["environment", *(f"{name}={value or 'none'}" for name, value in versions.items())])
    yield from (f"environment problem: {finding.text}" for finding in results if finding.level == "problem")


def _lines(facts: Facts) -> Iterator[str]:
    versions = {"torch": None, "torch-npu": None, "apex": None, **facts.packages}
    versions |= {"CANN": facts.cann, "driver": facts.driver, "Python": facts.python}
    if facts.npu_smi is not None:
        versions["npu-smi"] = facts.npu_smi.version
    yield "versions"
    yield from (f"  {name:<14}{versions[name] or 'none'}" for name in sorted(versions, key=str.lower))
    yield "devices"
    yield from (f"  {line}" for line in _devices(facts))
    yield "settings"
    yield from (f"  {name}={value}" for name, value in facts.variables.items()) if facts.variables else ("  none",)
    yield "limits"
    yield f"  /dev/shm      {_size(facts.shm_bytes)}, {_size(facts.shm_free_bytes)} free"
    yield f"  open files    {_count(facts.open_files)} (at most {_count(facts.open_files_hard)})"
    quota = "" if facts.cpu_quota is None else f", with a quota of {facts.cpu_quota:g} CPUs: {facts.processors} in use"
    yield f"  processors    {_ranges(facts.cpus)} ({len(facts.cpus)} of {facts.machine_cpus}){quota}"


def _devices(facts: Facts) -> Iterator[str]:
    if not facts.has_npu:
        yield "no NPU: no /dev/davinci* here" + ("" if facts.npu_smi_error else ", and no npu-smi that shows one")
        return
    label = "emulated NPUs" if facts.emulated else "/dev/davinci "
    yield f"{label} {_ranges(facts.device_files) or 'none'}"
    for chip in facts.npu_smi.chips if facts.npu_smi else ():
        memory = f", {chip.memory_used_mib} of {chip.memory_mib} MiB in use" if chip.memory_mib else ""
        yield f"NPU {chip.npu} chip {chip.chip}  {chip.name} at {chip.bus}: {chip.health}{memory}"
    for npu, address in sorted((facts.hccn or {}).items()):
        yield f"NPU {npu} has the RoCE address {address}"


def _size(count: int | None) -> str:
    return "none" if count is None else f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _count(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as ranges, such as `0-3,6`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
