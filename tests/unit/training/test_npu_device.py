"""A torch_npu that cannot be loaded, or cannot capture a step, gives one line; its own words are the error's cause.

And an accelerator rounds no operands in fp32: on emulated NPUs test_same_as_cpu.py shows it.
"""

import sys
from pathlib import Path

import pytest
import torch

from trainer.devices.device import open_device
from trainer.shared.errors import UsageError

MISSING = "cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (f"ImportError('libascend_hal.so: {MISSING}')", "the NPU's driver is not in this container"),
        (f"ImportError('libhccl.so: {MISSING}')", "CANN's environment is not set (libhccl.so): source its set_env.sh"),
        (f"OSError('libascendcl.so.1: {MISSING}')", "CANN's environment is not set (libascendcl.so)"),
        (
            "ImportError('libtorch_npu.so: undefined symbol: _ZN3c104impl3cow11cow_deleterEPv')",
            "torch_npu does not fit torch or CANN (undefined symbol _ZN3c104impl3cow11cow_deleterEPv)",
        ),
        ("ModuleNotFoundError(\"No module named 'torch_npu'\")", "torch_npu is not installed: install the one for"),
        ("RuntimeError('of another kind')", "torch_npu cannot be loaded (RuntimeError): python -m trainer env says"),
    ],
)
def test_the_reason_why_torch_npu_cannot_be_loaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, message: str
) -> None:
    (tmp_path / "torch_npu.py").write_text(f"raise {statement}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_device("npu")
    assert str(caught.value).startswith(f"--device npu: {message}")
    assert "\n" not in str(caught.value)
    assert str(caught.value.__cause__) in statement.replace("\\", "")


@pytest.mark.parametrize(
    ("graphs", "inf_nan", "obstacle"),
    [
        ("", "True", "torch_npu 2.1 has no graphs"),
        ("NPUGraph = None", "False", "Ascend910A shows an overflow only in a flag that the host reads"),
        ("NPUGraph = None", "True", "torch_npu 2.1 has no fused SGD whose rate lies on the device"),
    ],
)
def test_an_npu_says_why_it_cannot_capture_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: str, inf_nan: str, obstacle: str
) -> None:
    (tmp_path / "torch_npu.py").write_text(
        f"""\
__version__ = "2.1"
class npu:
    {graphs}
    get_device_name = lambda: "Ascend910A"
    class utils:
        is_support_inf_nan = lambda: {inf_nan}
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    try:
        assert open_device("npu").graph_obstacle() == obstacle
    finally:
        sys.modules.pop("torch_npu", None)


def test_a_gpu_rounds_no_operands_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _index: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    runtime = open_device("cuda")
    assert runtime.rounds_fp32()
    runtime.open(0)
    assert not runtime.rounds_fp32()
