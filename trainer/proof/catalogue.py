"""The checks of `prove`, in the order in which they run and are reported."""

import difflib
from collections.abc import Sequence

from trainer.proof.check import EVERY_KIND, ProofCheck, Scope
from trainer.proof.comparison import compare_links, compare_models, compare_rates
from trainer.shared.errors import UsageError
from trainer.topology.visible import DeviceKind

_OPEN_S, _OPERATORS_S, _RUN_S, _RUNS_S = 300.0, 600.0, 1200.0, 1800.0
"""The limits of checks that open a device, call operators, or start one run or several runs of the trainer.

A check takes seconds, but the first one on an NPU can compile each operator for seconds, on all devices at once: 600 s
for the first step of a 910A without binary kernels.
"""


def _of_node(name: str, about: str, function: str, *kinds: DeviceKind) -> ProofCheck:
    return ProofCheck(name, about, "node", f"trainer.proof.node:{function}", limit_s=60.0, kinds=kinds or EVERY_KIND)


def _of_runs(
    name: str, about: str, function: str, limit_s: float, *, scope: Scope = "device", module: str = "promises"
) -> ProofCheck:
    return ProofCheck(name, about, scope, f"trainer.proof.{module}:{function}", limit_s, starts_runs=True)


def _of_captured(name: str, about: str, scope: Scope = "device") -> ProofCheck:
    return _of_runs(name, about, f"prove_{name.replace('-', '_')}", _RUNS_S, scope=scope, module="captured")


CHECKS: tuple[ProofCheck, ...] = (
    _of_node("versions", "the versions of torch, torch_npu and CANN go together", "prove_versions"),
    _of_node("libraries", "the driver's and CANN's libraries are there", "prove_libraries", "npu"),
    _of_node(
        "visible-devices", "each visible device is named once, in ascending order", "prove_visible_devices", "npu"
    ),
    _of_node("npu-health", "npu-smi calls the devices healthy", "prove_health", "npu"),
    _of_node("unused-devices", "no other process uses the devices", "prove_unused_devices", "npu"),
    _of_node("rank-table", "the rank table is this pod's, and its devices are visible", "prove_rank_table"),
    _of_node("npu-network", "each NPU has an address on the network of the nodes", "prove_network", "npu"),
    _of_node("settings", "the settings of HCCL and of the allocator are within their bounds", "prove_settings", "npu"),
    _of_node("shared-memory", "/dev/shm has room for the batches of loader processes", "prove_shared_memory"),
    _of_node("open-files", "enough files can be open at once", "prove_open_files"),
    _of_node("processors", "there are enough processors for the devices and the threads", "prove_processors"),
    _of_node("output-disk", "the folder of runs can be written, and has room for checkpoints", "prove_output_disk"),
    ProofCheck(
        "open",
        "the device opens, and says its name",
        "device",
        "trainer.proof.device:prove_open",
        limit_s=_OPEN_S,
        opens=True,
        compare=compare_models,
    ),
    ProofCheck(
        "exact-arithmetic",
        "sums, products and convolutions of whole numbers have no wrong bit",
        "device",
        "trainer.proof.exact:prove_exact_arithmetic",
        limit_s=_OPERATORS_S,
    ),
    ProofCheck(
        "rounded-arithmetic",
        "sums, products, convolutions, exp, log and batch norm are as precise as their number format",
        "device",
        "trainer.proof.rounded:prove_rounded_arithmetic",
        limit_s=_OPERATORS_S,
    ),
    ProofCheck(
        "repeatable-kernels",
        "the same training pass gives the same bits, forward and backward",
        "device",
        "trainer.proof.repeatable:prove_repeatable",
        limit_s=_OPERATORS_S,
    ),
    ProofCheck(
        "overflow",
        "the loss scale notices that fp16 has overflowed",
        "device",
        "trainer.proof.overflow:prove_overflow",
        limit_s=_OPERATORS_S,
    ),
    ProofCheck(
        "memory",
        "patterns written to free memory are read back",
        "device",
        "trainer.proof.memory:prove_memory",
        limit_s=_OPERATORS_S,
    ),
    ProofCheck(
        "matmul-speed",
        "the device multiplies matrices as fast as the others",
        "device",
        "trainer.proof.speed:prove_matmul_speed",
        limit_s=_OPERATORS_S,
        compare=compare_rates,
        is_timed=True,
    ),
    ProofCheck(
        "copy-speed",
        "the device copies memory as fast as the others",
        "device",
        "trainer.proof.speed:prove_copy_speed",
        limit_s=_OPERATORS_S,
        compare=compare_rates,
        is_timed=True,
    ),
    # The last one that uses the device itself: apex changes torch.
    ProofCheck(
        "o2-apex",
        "O2 by apex gives the losses of O2 without it",
        "device",
        "trainer.proof.apex:prove_o2_apex",
        limit_s=_RUN_S,
    ),
    ProofCheck(
        "link-speed",
        "two devices exchange sums as fast as other pairs",
        "pair",
        "trainer.proof.collectives:prove_link_speed",
        limit_s=_OPERATORS_S,
        compare=compare_links,
        is_timed=True,
    ),
    ProofCheck(
        "all-reduce",
        "sums over all devices are right",
        "all",
        "trainer.proof.collectives:prove_all_reduce",
        limit_s=_OPERATORS_S,
    ),
    ProofCheck(
        "all-reduce-speed",
        "the rate and latency of sums over all devices",
        "all",
        "trainer.proof.collectives:prove_all_reduce_speed",
        limit_s=_OPERATORS_S,
    ),
    # After the collectives, whose processes have freed HCCL's ports for these runs.
    _of_runs("fp32-losses", "the first losses in fp32 are the CPU's", "prove_fp32_losses", _RUN_S),
    _of_runs("fp16-losses", "the first losses in fp16 are near the CPU's in fp32", "prove_fp16_losses", _RUN_S),
    _of_runs("bf16-losses", "the first losses in bf16 are near the CPU's in fp32", "prove_bf16_losses", _RUN_S),
    _of_runs(
        "o2-losses",
        "the first losses in O2, by apex or without it, are near the CPU's in fp32",
        "prove_o2_losses",
        _RUN_S,
    ),
    _of_runs("skipped-step", "steps that overflow in fp16 are left out", "prove_skipped_step", _RUN_S),
    _of_runs("kill-and-resume", "a killed run resumes bit for bit", "prove_kill_and_resume", _RUNS_S),
    _of_runs(
        "stop-and-resume",
        "SIGTERM ends a run in time, with code 75, and it resumes bit for bit",
        "prove_stop_and_resume",
        _RUNS_S,
    ),
    _of_captured("captured-step", "a whole run with captured steps gives the bits of an eager one"),
    _of_captured("captured-fp32", "captured steps in fp32 give the bits of eager ones"),
    _of_captured("captured-fp16", "captured steps in fp16 give the bits of eager ones"),
    _of_captured("captured-bf16", "captured steps in bf16 give the bits of eager ones"),
    _of_captured("captured-o2", "captured steps in O2 give the bits of eager ones"),
    _of_runs("cann-log", "CANN's log is in the run's folder", "prove_cann_log", _RUN_S),
    _of_runs(
        "data-parallel",
        "all devices together take the steps that one would take",
        "prove_data_parallel",
        _RUN_S,
        scope="all",
    ),
    _of_captured("captured-parallel", "captured steps of all devices together are near eager ones", "all"),
)


def choose_checks(words: Sequence[str] | None, kind: DeviceKind, *, option: str = "--only") -> list[ProofCheck]:
    """Return the checks of these names for a kind of device, and the check that opens the device, if they need it.

    Args:
        words: Each has a name, or several with commas between them, from the user; None for all checks.
        kind: Of the devices.
        option: Where the user has given the names.

    Raises:
        UsageError: there is no check of a name, or none for this kind of device.
    """
    known = {check.name: check for check in CHECKS}
    names = None if words is None else [name.strip() for word in words for name in word.split(",")]
    for name in names or ():
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(sorted(known))}"
            raise UsageError(f"{option} {name or repr(name)}: no such check; {advice}")
        if kind not in known[name].kinds:
            raise UsageError(f"{option} {name}: this check is for {' and '.join(known[name].kinds)}, not for {kind}")
    chosen = [check for check in CHECKS if kind in check.kinds and (names is None or check.name in names)]
    uses_device = any(check.scope != "node" for check in chosen)
    return [check for check in CHECKS if check in chosen or (check.opens and uses_device)]
