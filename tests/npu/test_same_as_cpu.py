"""On emulated NPUs a run in fp32 equals the run on the CPU bit for bit; its records show the emulation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.local.conftest import TrainerResult
from tests.npu.conftest import SHORT, Run

RECIPE = (*SHORT, "--precision", "fp32", "--label-smoothing", "0.1", "--mixup", "0.2", "--clip-norm", "5")
GENERATORS = {"ranks.rng", "ranks.device_rng"}
"""On a CPU, layers draw from the host's generator; on an NPU, from the device's."""


@dataclass(frozen=True)
class Pair:
    """The same run on both; `calls` are the calls of torch_npu, by process."""

    cpu: TrainerResult
    npu: TrainerResult
    calls: list[list[str]]


@pytest.fixture(scope="module", params=[1, 2])
def pair(run: Run, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Pair:
    log = tmp_path_factory.mktemp("calls") / "log"
    count = ("--npus", str(request.param))
    cpu = run(f"cpu-{request.param}", *RECIPE, *count, "--device", "cpu", "--memory-format", "nchw")
    npu = run(f"npu-{request.param}", *RECIPE, *count, environ={"NPU_EMULATED_LOG": str(log)})
    for done in (cpu, npu):
        assert done.code == 0, done.stdout
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    processes = dict.fromkeys(process for process, _ in lines)
    return Pair(cpu, npu, [[call for by, call in lines if by == process] for process in processes])


def test_losses_and_accuracy_equal_the_cpus(pair: Pair) -> None:
    assert pair.npu.metrics("step") == pair.cpu.metrics("step")
    npu, cpu = pair.npu.metrics("eval"), pair.cpu.metrics("eval")
    # A CPU evaluates by oneDNN's own operators, whose additions have another order.
    assert [row.pop("loss") for row in npu] == pytest.approx([row.pop("loss") for row in cpu], rel=1e-4)
    assert npu == cpu


def test_weights_average_momentum_and_statistics_equal_the_cpus(pair: Pair) -> None:
    cpu, npu = (load_file(_state(done.run)) for done in (pair.cpu, pair.npu))
    assert any(name.endswith("momentum_buffer") for name in npu)
    assert npu.keys() - GENERATORS == cpu.keys() - GENERATORS
    assert [name for name in cpu.keys() - GENERATORS if not npu[name].equal(cpu[name])] == []


def test_the_devices_generator_is_saved_for_every_rank(pair: Pair) -> None:
    state = load_file(_state(pair.npu.run))
    assert state["ranks.device_rng"].shape == (len(pair.calls), state["ranks.rng"].shape[1])


def test_log_header_and_provenance_show_the_emulation(pair: Pair) -> None:
    assert pair.npu.events("start")[0]["device"] == "Ascend910-emulated"
    provenance: dict[str, Any] = json.loads((pair.npu.run / "provenance.json").read_text())
    name = "Ascend910-emulated"
    assert provenance["device"] == {"backend": "hccl", "kind": "npu", "name": name, "rounds_fp32": False}
    assert provenance["versions"]["torch-npu"].endswith("+emulated")


def test_each_process_opens_only_its_own_device(pair: Pair) -> None:
    opened = [[call for call in calls if call.startswith("open ")] for calls in pair.calls]
    assert sorted(opened) == [[f"open npu:{number}"] for number in range(len(opened))]


def test_the_device_is_chosen_first_and_with_binary_kernels(pair: Pair) -> None:
    for calls in pair.calls:
        device = calls[1].removeprefix("open npu:")
        cache = f"{pair.npu.run.parent}/.ascend-kernels"
        assert calls[:6] == [
            f"set_device(device={device})",
            f"open npu:{device}",
            "set_compile_mode(jit_compile=False)",
            "set_option(ALLOW_CONV_HF32=disable)",
            "set_option(ALLOW_MATMUL_HF32=disable)",
            f"set_option(ACL_OP_COMPILER_CACHE_MODE=enable, ACL_OP_COMPILER_CACHE_DIR={cache})",
        ]
        assert all(call.startswith("init_process_group") for call in calls[6:])


def _state(run: Path) -> Path:
    return max(run.glob("checkpoints/step-*/state.safetensors"))
