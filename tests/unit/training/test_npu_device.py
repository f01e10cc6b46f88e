"""A torch_npu that cannot be loaded is one line that says what to do; its own words are kept for below it."""

from pathlib import Path

import pytest

from trainer.devices.device import open_device
from trainer.shared.errors import UsageError

MISSING = "cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("fails", "said"),
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
def test_what_keeps_torch_npu_from_being_loaded_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, said: str
) -> None:
    (tmp_path / "torch_npu.py").write_text(f"raise {fails}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_device("npu")
    assert str(caught.value).startswith(f"--device npu: {said}")
    assert "\n" not in str(caught.value)
    assert str(caught.value.__cause__) in fails.replace("\\", "")
