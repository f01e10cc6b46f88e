"""A compiled network is one graph, made once, whose losses are an eager network's; its copies stay eager."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from trainer.model.pnasnet import TINY, PNASNet5


def _losses(network: PNASNet5, call: Any) -> list[float]:
    """Return the losses of three steps, in which drop-path's rate grows."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.manual_seed(1)
    losses = []
    for step in range(3):
        network.set_progress(step / 2)
        outputs: tuple[Tensor, Tensor] = call(torch.randn(2, 3, 35, 35))
        loss = torch.stack([logits.square().mean() for logits in outputs]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_compiled_network_is_one_graph_whose_losses_are_the_eager_ones() -> None:
    torch.manual_seed(0)
    network = PNASNet5(TINY, 10, "tf", drop_path=0.4)
    other, counter = copy.deepcopy(network), CompileCounter()
    compiled = torch.compile(other, backend=counter, dynamic=False, fullgraph=True)
    assert _losses(other, compiled) == pytest.approx(_losses(network, network), rel=1e-5)
    assert counter.frame_count == 1, "a growing drop-path rate compiled the network again"


PROGRAM = """
import copy, sys, torch
from types import SimpleNamespace
from torch import nn
from trainer.shared.errors import UsageError
from trainer.training.compiling import compile_network

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Dropout(0.5))
eager, x, notes = copy.deepcopy(network), torch.randn(2, 3, 8, 8), []
watchdog = SimpleNamespace(
    begin_compilation=lambda: notes.append("begin"), end_compilation=lambda: notes.append("end")
)
try:
    compile_network(network, torch.device("cpu"), watchdog)
except UsageError as error:
    print(error)
    sys.exit(error.exit_code)
torch.manual_seed(1)
compiled = network(x)
compiled.sum().backward()
times = len(notes) // 2
assert times and notes == ["begin", "end"] * times, "the watchdog does not know of the compilation"
network(x).sum().backward()
assert len(notes) == 2 * times, "compiled again"
torch.manual_seed(1)
assert torch.allclose(compiled, eager(x), atol=1e-5), "the draws differ"
assert copy.deepcopy(network)._compiled_call_impl is None, "the copy for an evaluation is compiled"
print("compiled")
"""


@pytest.mark.parametrize(
    ("compiler", "code", "output"),
    [
        ({}, 0, "compiled\n"),
        ({"TORCH_COMPILE_DISABLE": "1"}, 2, "--compile: TORCH_COMPILE_DISABLE=1 lets torch compile nothing: unset it"),
        ({"TORCHINDUCTOR_CACHE_DIR": "/proc/cache"}, 2, "--compile: torch cannot compile on this machine: "),
        (
            {"CXX": "/missing/g++"},
            2,
            "--compile: torch cannot compile on this machine: InvalidCxxCompiler: No working C++",
        ),
    ],
)
def test_draws_are_eager_and_a_missing_compiler_is_one_line(
    tmp_path: Path, compiler: dict[str, str], code: int, output: str
) -> None:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)} | compiler
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout[: len(output)]) == (code, output), done.stderr
    assert done.stdout.count("\n") == 1
