"""The contract check finds each kind of mistake in small programs, compared with the real torch_npu 2.9.0."""

import re
from pathlib import Path

import pytest

from tests.npu.contract import wheels
from tests.npu.contract.library import Library, MissingError
from tests.npu.contract.uses import collect
from tests.npu.contract.verdict import differences, unknown_variables, unverifiable, violations

# Written like the product: a module loaded by name, an object made in one module and used in another.
DEVICE = """
import importlib
from typing import Any
import torch

class NpuDevice:
    def __init__(self):
        self._torch_npu: Any = importlib.import_module("torch_npu")

    def open(self, rank):
        npu = self._torch_npu.npu
        npu.set_device(rank)
        npu.set_compile_mode(jit_compile=False)
        {open}

    def autocast(self, dtype):
        return self._torch_npu.npu.amp.autocast({autocast})

    def grad_scaler(self, *, init_scale):
        scaler: torch.amp.GradScaler = self._torch_npu.npu.amp.GradScaler({scaler})
        return scaler

    def sgd(self, groups, *, lr):
        optimizer = self._torch_npu.optim.NpuFusedSGD({sgd})
        return optimizer
"""
TRAINING = """
from dataclasses import dataclass
from typing import Any

@dataclass
class Training:
    optimizer: Any
    scaler: Any

def build(device, groups):
    optimizer = device.sgd(groups, lr=0.1)
    return Training(optimizer=optimizer, scaler=device.grad_scaler(init_scale=2.0))

def step(training, loss):
    training.optimizer.{zero_grad}
    training.scaler.scale(loss).backward()
    training.scaler.{unscale}
    training.scaler.step(training.optimizer)
    update(training.scaler)

def update(anything):
    anything.{update}
"""
RIGHT = {
    "open": "pass",
    "autocast": "dtype=dtype",
    "scaler": "init_scale=init_scale",
    "sgd": "groups, lr=lr",
    "zero_grad": "zero_grad()",
    "unscale": "unscale_(training.optimizer)",
    "update": "update()",
}
MISTAKES = [
    ("open", "npu.set_devices(rank)", "torch_npu.npu has no set_devices"),
    ("open", "npu.manual_seed()", "missing a required argument: 'seed'"),
    ("open", "torch.npu.synchronise()", "torch_npu.npu has no synchronise"),
    ("open", "torch.npu.synchronize(0, 1)", "too many positional arguments"),
    ("open", "from torch_npu.npu import set_devices", "torch_npu.npu has no set_devices"),
    ("open", "import torch_npu.npu.amps", "torch_npu.npu has no amps"),
    ("open", "getattr(self._torch_npu, 'npus')", "torch_npu has no npus"),
    ("open", "npu.config.allow_internal_formats = False", "torch_npu.npu.config has no allow_internal_formats"),
    ("open", "npu.amp()", "is a module, and cannot be called"),
    ("open", "self._torch_npu.npu_two_hot(rank)", "torch_npu has no npu_two_hot"),
    ("open", "self._torch_npu.npu_one_hot(rank, classes=3)", "got an unexpected keyword argument 'classes'"),
    ("open", "torch.ops.npu.npu_one_hot()", "missing a required argument: 'input'"),
    ("open", "torch.ops.npu.npu_two_hot(rank)", "torch.ops.npu has no npu_two_hot"),
    ("autocast", "'npu', dtype=dtype, device_type='npu'", "multiple values|unexpected keyword argument 'device_type'"),
    ("scaler", "'npu', device='npu'", "got an unexpected keyword argument 'device'"),
    ("sgd", "lr=lr", "missing a required argument: 'params'"),
    ("sgd", "groups, lr=lr, fused=True", "got an unexpected keyword argument 'fused'"),
    ("zero_grad", "zero_grad(set_to_none=True)", "it raises an error at set_to_none=True"),
    ("zero_grad", "zero_grads()", r"NpuFusedSGD\(\) has no zero_grads"),
    ("unscale", "unscale(training.optimizer)", r"GradScaler\(\) has no unscale"),
    ("unscale", "unscale_()", "missing a required argument: 'optimizer'"),
    ("update", "update(scale=1.0)", "got an unexpected keyword argument 'scale'"),
]
ALLOWED = [
    ("open", "npu.config.allow_internal_format = False"),
    ("open", "self._torch_npu.npu_one_hot(rank, num_classes=3)"),
    ("open", "torch.npu.get_rng_state().cpu()"),
    ("open", "npu.set_device(*self.anything)"),
    ("sgd", "groups, **self.options"),
    ("zero_grad", "zero_grad(set_to_none=False)"),
    ("zero_grad", "found_inf = None"),
    ("zero_grad", "param_groups[0]['lr'] = 0.1"),
]


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return Library.of_wheel(wheels.wheel("torch_npu==2.9.0"))
    except wheels.DownloadError as error:
        pytest.fail(str(error), pytrace=False)


def program(folder: Path, **parts: str) -> list[Path]:
    parts = {**RIGHT, **parts}
    for name, text in (("device", DEVICE), ("training", TRAINING)):
        for part, code in parts.items():
            text = text.replace(f"{{{part}}}", code)  # noqa: PLW2901
        (folder / f"{name}.py").write_text(text)
    return sorted(folder.glob("*.py"))


def check(folder: Path, library: Library, **parts: str) -> list[str]:
    return violations(collect(program(folder, **parts), folder), library)


def test_a_right_program_passes(tmp_path: Path, library: Library) -> None:
    assert check(tmp_path, library) == []


@pytest.mark.parametrize(("part", "code", "message"), MISTAKES, ids=[code for _, code, _ in MISTAKES])
def test_a_mistake_is_found_in_its_line(tmp_path: Path, library: Library, part: str, code: str, message: str) -> None:
    (problem,) = check(tmp_path, library, **{part: code})
    place, _, text = problem.partition(": ")
    file, _, line = place.partition(":")
    assert code in (tmp_path / file).read_text().splitlines()[int(line) - 1]
    assert re.search(message, text), text


@pytest.mark.parametrize(("part", "code"), ALLOWED, ids=[code for _, code in ALLOWED])
def test_working_code_is_not_a_mistake(tmp_path: Path, library: Library, part: str, code: str) -> None:
    assert check(tmp_path, library, **{part: code}) == []


def test_apex_is_collected_and_cannot_be_verified(tmp_path: Path) -> None:
    (tmp_path / "o2.py").write_text(
        "import importlib\n"
        "amp = importlib.import_module('apex.amp')\n"
        "optimizers = importlib.import_module('apex.optimizers')\n"
        "amp.initialize(1, opt_level='O2')\n"
        "optimizers.NpuFusedSGD([]).state.get(1)\n"
    )
    assert unverifiable(collect([tmp_path / "o2.py"], tmp_path)) == {
        "apex.amp.initialize",
        "apex.optimizers.NpuFusedSGD",
        "apex.optimizers.NpuFusedSGD().state",
    }


def test_a_name_that_one_origin_has_is_allowed_and_a_call_that_one_refuses_is_a_mistake(
    tmp_path: Path, library: Library
) -> None:
    path = tmp_path / "either.py"
    text = (
        "import apex.optimizers, torch_npu.optim\n"
        "optimizer = apex.optimizers.NpuFusedSGD([]) if input() else torch_npu.optim.NpuFusedSGD([])\n"
        "optimizer.clip_optimizer_grad_norm_fused(1.0)\n"
    )
    path.write_text(text)
    assert violations(collect([path], tmp_path), library) == []
    path.write_text(f"{text}optimizer.zero_grad(set_to_none=True)\n")
    (problem,) = violations(collect([path], tmp_path), library)
    assert problem.startswith("either.py:4: torch_npu.optim.NpuFusedSGD().zero_grad: it raises an error")


def test_variables_that_the_library_does_not_read_are_found(library: Library) -> None:
    names = ["TASK_QUEUE_ENABLE", "TASK_QUEUE_ENABLED", "ASCEND_RT_VISIBLE_DEVICES", "an HCCL_WORD in a text"]
    assert unknown_variables([("a.py:1", name) for name in names], library) == {"TASK_QUEUE_ENABLED": "a.py:1"}


STAND_IN = {
    "__init__.py": "import torch_npu.npu, torch_npu.optim\n",
    "_emulation.py": "def not_in_torch_npu(): ...\n",
    "npu/__init__.py": "from torch_npu.npu._device import *\nfrom torch_npu.npu import amp\n",
    "npu/_device.py": "__all__ = ['set_device']\ndef set_device(device): ...\n",
    "npu/amp/__init__.py": (
        "import torch\n"
        "class GradScaler(torch.amp.GradScaler):\n"
        "    def __init__(self, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000,\n"
        "                 dynamic=True, enabled=True): ...\n"
        "    def update(self, new_scale=None): ...\n"
    ),
    "optim/__init__.py": "from ._sgd import NpuFusedSGD\n",
    "optim/_sgd.py": (
        "class NpuFusedSGD:\n"
        "    def __init__(self, params, lr=None, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False): ...\n"
        "    def zero_grad(self, set_to_none=False): ...\n"
    ),
}
DEVICE_FILE, SCALER_FILE, SGD_FILE = "npu/_device.py", "npu/amp/__init__.py", "optim/_sgd.py"
UNLIKE = [
    (DEVICE_FILE, "set_device(device)", "set_device(device=0)", "npu.set_device(device='0') is"),
    (DEVICE_FILE, "['set_device']", "['set_device', 'fly']\ndef fly(): ...", "npu.fly: torch_npu.npu has no fly"),
    (DEVICE_FILE, "def set_device(device): ...", "class set_device: ...", "is a class, but a callable in torch_npu"),
    (SCALER_FILE, "growth_interval=2000", "growth_interval=100", "npu.amp.GradScaler(init_scale"),
    (SCALER_FILE, "dynamic=True, ", "", "npu.amp.GradScaler(init_scale"),
    (SCALER_FILE, "def update(", "def upgrade(", "npu.amp.GradScaler.upgrade is not in torch_npu"),
    (
        SCALER_FILE,
        "def update(self, new_scale=None)",
        "def update(self, *new_scale)",
        "GradScaler.update(self, *new_scale)",
    ),
    (
        DEVICE_FILE,
        "set_device(device)",
        "set_device(device, *, stream=None)",
        "set_device(device, *, stream='None') is",
    ),
    (DEVICE_FILE, "set_device(device)", "set_device()", "npu.set_device() is set_device(device) in torch_npu"),
    (SGD_FILE, "set_to_none=False", "set_to_none=True", "NpuFusedSGD.zero_grad(self, set_to_none='True') is"),
    (SGD_FILE, "params, lr=None", "params, *, lr=None", "optim.NpuFusedSGD(params, *, lr='None'"),
]


def stand_in(folder: Path, **changed: str) -> Path:
    for name, text in {**STAND_IN, **changed}.items():
        path = folder / "torch_npu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "torch_npu"


def test_a_stand_in_with_a_part_of_torch_npu_passes(tmp_path: Path, library: Library) -> None:
    assert differences(stand_in(tmp_path), library) == []


def test_a_stand_in_can_leave_out_optional_arguments(tmp_path: Path, library: Library) -> None:
    changed = STAND_IN[SGD_FILE].replace(", weight_decay=0.0, nesterov=False", "").replace("set_to_none=False", "")
    assert changed != STAND_IN[SGD_FILE]
    assert differences(stand_in(tmp_path, **{SGD_FILE: changed}), library) == []


@pytest.mark.parametrize("changed", UNLIKE, ids=[wrong for _, _, wrong, _ in UNLIKE])
def test_a_stand_in_that_differs_is_found(tmp_path: Path, library: Library, changed: tuple[str, str, str, str]) -> None:
    file, right, wrong, message = changed
    assert right in STAND_IN[file]
    (problem,) = differences(stand_in(tmp_path, **{file: STAND_IN[file].replace(right, wrong)}), library)
    assert message in problem


def test_a_wheel_other_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(wheels, "_download", lambda _, folder: (folder / "torch_npu.whl").write_bytes(b"another"))
    with pytest.raises(wheels.DownloadError, match=r"torch_npu\.whl has SHA-256 .* pins afe075e1"):
        wheels.wheel("torch_npu==2.9.0")
    assert not any(path.is_dir() for path in (tmp_path / "cache").iterdir())


def test_without_a_network_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(wheels.DownloadError, match=r"^the real torch_npu==2\.9\.0 cannot be downloaded.*") as raised:
        wheels.wheel("torch_npu==2.9.0")
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_name_is_reported_with_its_parent(library: Library) -> None:
    with pytest.raises(MissingError, match=r"^torch_npu\.npu\.amp\.GradScaler\(\) has no scal$"):
        library.find("torch_npu.npu.amp.GradScaler().scal")
