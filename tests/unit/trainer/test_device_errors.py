"""The table of known device errors: each row finds its own line, says what helps and names its source."""

import pytest

from launcher.output.lines import parse_lines
from launcher.output.log_causes import log_causes
from trainer.shared.device_errors import DEVICE_ERRORS, find_device_error

TORCH = "[ERROR] 2026-04-20-10:42:34 (PID:2090824, Device:0, RankID:0) ERR02200 DIST call hccl api failed."
# One line for each row of the table, in its order.
LINES = (
    "EI0002: The wait execution of the Notify register times out.",
    f"{TORCH} EI0006: Getting socket times out. Reason: remote rank did not send the data in time.",
    "EI0014: the IP address in the ranktable is inconsistent with the IP of the device",
    "EJ0003: Failed to bind the IP port. Reason: the port 60000 is in use.",
    "RuntimeError: The Inner error is reported as above. reason=[hbm Multi-bit ECC error]",
    "RuntimeError: reason=[suspect remote error]",
    "dcmi model initialized failed, because the device is used. ret is -8020",
    "EE1001: [PID: 9] The argument is invalid.Reason: rtSetDevice failed, invalid device. set device=8",
    "OSError: libascend_hal.so: cannot open shared object file: No such file or directory",
    f"{TORCH} EI0001: Environment variable [HCCL_EXEC_TIMEOUT] is invalid.",
    "EI0003: In [HcclAllReduce], value [0] for parameter [count] is invalid.",
    "EI0005: The arguments for collective communication are inconsistent between ranks",
    "EI0007: Failed to allocate resource[notify]",
    "EI0008: The HCCL versions are inconsistent",
    "EI0009: Failed to initialize the transport",
    "EI0011: Failed to allocate device memory",
    "EI0012: SDMA memory copy task exception occurred",
    "EI0013: An error CQE occurred during operator execution",
    "EI0016: Value disable for config TLS is invalid",
    "EJ0001: Failed to initialize the HCCP process",
    "NPU function error: aclrtMallocAlign32, error code is 207001",
    "NPU function error: aclrtSetDevice, error code is 207004",
    "NPU function error: aclrtSetDevice, error code is 207006",
    "rtStreamSynchronize failed, error code is 507010",
    "NPU function error: c10_npu::acl::AclrtSynchronizeStreamWithTimeout, error code is 507014",
    "NPU function error: aclrtSynchronizeDevice, error code is 507015",
    "NPU function error: aclrtSetDevice, error code is 507033",
    "NPU function error: aclrtSynchronizeDevice, error code is 507899",
)


@pytest.mark.parametrize(("line", "row"), list(zip(LINES, DEVICE_ERRORS, strict=True)))
def test_each_row_finds_its_line_and_says_what_helps(line: str, row: object) -> None:
    found = find_device_error(line)
    assert found is not None
    error, text = found
    assert error is row, text
    assert error.meaning in text
    assert all((error.step, error.source))


@pytest.mark.parametrize(
    "line",
    [
        "step epoch=0 step=507015 loss=2.1",
        "progress code=507015 left_s=9",
        "the run has 507015 images",
        "Loading EI00021 of 3",
        "result mode=full images=207001",
        "the link is up",
        "code coverage 100%",
    ],
)
def test_a_line_that_only_has_such_a_number_is_no_error(line: str) -> None:
    tagged = f"[rank 0 npu:0 #1] {line}\n".encode()
    assert list(log_causes(None, parse_lines(tagged))) == []


def test_an_error_of_several_ranks_is_one_cause_with_the_first_rank_and_device() -> None:
    block = "".join(f"[rank {rank} npu:{rank} #7] {LINES[17]}\x1b[2J\n" for rank in (5, 0, 1, 2, 3, 4))
    (cause,) = log_causes(None, parse_lines(block.encode()))
    assert cause.text.startswith("rank 5 on npu:5: the network between two devices lost a transfer (EI0013); rank 0, ")
    assert cause.text.endswith("rank 1, rank 2 and others too")
    assert cause.evidence[0].startswith("[rank 5 npu:5] EI0013")
    assert cause.steps[0].startswith("check both devices' ports")
