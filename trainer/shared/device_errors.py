"""Known errors of HCCL, CANN and torch_npu: how a line shows one, what it means, what helps, and where that is written.

The trainer explains its own errors with this table, and the launcher explains the lines of a log. To add an error,
add its row with its source, and an example to tests/unit/trainer/test_device_errors.py. Nothing here has been seen on
a real NPU: the words and codes come from the named sources.
"""

import re
from typing import NamedTuple

HCOMM = "CANN hcomm, docs/en/error_codes"
HCCL_GUIDE = "HCCL user guide, fault diagnosis (CANN 9.0)"
TORCH_NPU = "Ascend/pytorch, torch_npu/csrc/core/npu/NPUErrorCodes.h"
NPU_EXCEPTION = "Ascend/pytorch, torch_npu/csrc/core/npu/NPUException.cpp"
USERS = "users' reports (vllm-project/vllm-ascend 405, 2698; Project-HAMi/HAMi 23)"

CODE = r"(?i:\bret|\berror(?:_?code)?|\bcode)\b\W*(is\b)?\W*"
"""Stands before a code: the codes of dcmi and of the runtime are bare numbers, which other texts contain too."""
FAULTS = r"hbm Multi-bit ECC error|device mem error|device task abort|link error|hccl op retry failed"
_PLOG = "read CANN's own log, in `evidence/` of the output folder (docs/ascend.md)"
_ILL_DEVICE = "run npu-smi info, and take the device or its node out"


class DeviceError(NamedTuple):
    """One known error.

    Attributes:
        pattern: finds it in a line; the group `what`, or else the whole match, is shown.
        meaning: what has happened.
        step: what helps.
        source: where its meaning is written.
        lasting: whether new processes in the same place would meet it again.
        secondary: whether another rank's error is the cause.
    """

    pattern: str
    meaning: str
    step: str
    source: str
    lasting: bool = False
    secondary: bool = False

    def describe(self, match: re.Match[str]) -> str:
        """Return the meaning with the words that were found."""
        return f"{self.meaning} ({match.groupdict().get('what') or match[0]})"


DEVICE_ERRORS = (
    DeviceError(
        r"\b(?P<what>EI0002)\b|Notify register times out",
        "HCCL waited too long for a peer",
        "see which rank's lines end first; HCCL_EXEC_TIMEOUT is how long it waits",
        HCCL_GUIDE,
        lasting=True,
        secondary=True,
    ),
    DeviceError(
        r"\b(?P<what>EI0006|EI0015)\b|wait socket establish timeout",
        "HCCL could not connect to all peers in time",
        "see that every rank has started, and whether the nodes reach each other; HCCL_IF_IP chooses the address, "
        "HCCL_CONNECT_TIMEOUT the time",
        HCCL_GUIDE,
        lasting=True,
        secondary=True,
    ),
    DeviceError(
        r"\b(?P<what>EI0004|EI0014|EI0017)\b|is not a valid real path",
        "HCCL refuses the rank table",
        "compare its device_ip and server_id with the nodes",
        HCCL_GUIDE,
        lasting=True,
    ),
    DeviceError(
        r"\b(?P<what>EI0019|EI0020|EJ0003)\b",
        "a port of HCCL's is taken",
        "end the process that an earlier run left, or set HCCL_IF_BASE_PORT",
        HCCL_GUIDE,
        lasting=True,
    ),
    DeviceError(rf"reason=\[(?P<what>{FAULTS})\]", "the device failed", _ILL_DEVICE, NPU_EXCEPTION, lasting=True),
    DeviceError(
        "(?P<what>suspect remote error)",
        "a peer is gone",
        "see the other ranks' lines",
        NPU_EXCEPTION,
        lasting=True,
        secondary=True,
    ),
    DeviceError(
        rf"{CODE}-8020\b|-8020\b.{{0,40}}device is used|NPU is busy",
        "the device is in use by another process",
        "see npu-smi info, and end it or choose another device",
        USERS,
        lasting=True,
    ),
    DeviceError(
        rf"{CODE}107001\b|\b107001\W+invalid device|\bEE1001\b.{{0,200}}\bdevice",
        "no such device",
        "ASCEND_RT_VISIBLE_DEVICES counts the container's devices from 0, whatever their number on the host",
        TORCH_NPU,
        lasting=True,
    ),
    DeviceError(
        r"libascend_hal\.so[^\n]*cannot open shared object",
        "the NPU's driver is not in this container",
        "use Ascend Docker Runtime, or mount /usr/local/Ascend/driver",
        USERS,
        lasting=True,
    ),
    DeviceError(
        r"\b(?P<what>EI0001)\b",
        "a variable of HCCL's has an invalid value",
        "correct the variable that it names",
        HCOMM,
    ),
    DeviceError(
        r"\b(?P<what>EI0003)\b", "a collective operation got an invalid argument", "report it with its log", HCOMM
    ),
    DeviceError(
        r"\b(?P<what>EI0005)\b",
        "the ranks do not call the same collective operation",
        "compare the ranks' lines before it: code, settings or CANN versions differ",
        HCOMM,
    ),
    DeviceError(r"\b(?P<what>EI0007)\b", "HCCL lacks a resource of the device or the host", _PLOG, HCOMM),
    DeviceError(
        r"\b(?P<what>EI0008)\b", "the ranks have different versions of HCCL", "use one image on all nodes", HCOMM
    ),
    DeviceError(
        r"\b(?P<what>EI0009|EI0010)\b",
        "HCCL could not set up a link to a peer",
        "check the link of the devices (hccn_tool -i N -link -g, -ping)",
        HCOMM,
    ),
    DeviceError(
        r"\b(?P<what>EI0011|EL0004)\b|\b207018\b.{0,40}memory",
        "the device has too little memory",
        "lower --batch-size, or compute it in parts with --micro-batch",
        HCOMM,
    ),
    DeviceError(
        r"\b(?P<what>EI0012)\b|int_process_hwts_sdma_timeout",
        "a copy between devices failed (SDMA)",
        _ILL_DEVICE,
        HCOMM,
    ),
    DeviceError(
        r"\b(?P<what>EI0013|EI0018)\b|HCCL_E_REMOTE|\berror cqe\b",
        "the network between two devices lost a transfer",
        "check both devices' ports (hccn_tool -i N -link -g, -stat -g), cables and switch; the peer can be gone too",
        HCOMM,
    ),
    DeviceError(
        r"\b(?P<what>EI0016)\b",
        "the devices have different settings, such as TLS",
        "compare them (hccn_tool -i N -tls -g)",
        HCOMM,
    ),
    DeviceError(
        r"\b(?P<what>EJ0001)\b", "HCCP, the network service of the device, did not start", _ILL_DEVICE, HCCL_GUIDE
    ),
    DeviceError(
        rf"{CODE}(?P<what>207001|207005)\b",
        "the device has too little memory",
        "lower --batch-size, or compute it in parts with --micro-batch",
        TORCH_NPU,
    ),
    DeviceError(rf"{CODE}(?P<what>207004)\b", "the device is not available", _ILL_DEVICE, TORCH_NPU),
    DeviceError(
        rf"{CODE}(?P<what>207006)\b",
        "the user has no right to the device",
        "give the pod the user and the group of the device files (--user)",
        TORCH_NPU,
    ),
    DeviceError(rf"{CODE}(?P<what>507010)\b", "the device's task scheduler does not answer", _ILL_DEVICE, TORCH_NPU),
    DeviceError(
        rf"{CODE}(?P<what>507014|507017|507034|507046|507048)\b",
        "a task on the device took too long",
        _PLOG,
        TORCH_NPU,
    ),
    DeviceError(
        rf"{CODE}(?P<what>507015|507016|507018|507035|507036|507042|507043)\b",
        "an operator failed on the device",
        f"{_PLOG}; the first such rank has the cause",
        TORCH_NPU,
    ),
    DeviceError(rf"{CODE}(?P<what>507033)\b", "the device could not be started", _ILL_DEVICE, TORCH_NPU),
    DeviceError(
        rf"{CODE}(?P<what>507899|507901)\b",
        "the device's driver failed, often after an earlier error",
        f"see the lines before it; {_PLOG}",
        TORCH_NPU,
    ),
)
"""The most exact first."""


def find_device_error(text: str) -> tuple[DeviceError, str] | None:
    """Return the known error that a text shows, and its meaning with the words that were found; None without one."""
    for error in DEVICE_ERRORS:
        if match := re.search(error.pattern, text):
            return error, error.describe(match)
    return None
