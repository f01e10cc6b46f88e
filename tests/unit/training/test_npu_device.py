"""A torch_npu that cannot be loaded gives one line with the next step; its own words are the error's cause."""

from pathlib import Path

import pytest

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
