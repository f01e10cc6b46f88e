"""A runtime's own words become one line that says what to do."""

import pytest

from trainer.devices.runtime_errors import explain_runtime_error
from trainer.supervisor import blames_a_peer

HCCL = (
    "HCCL function error: HcclAllReduce, error code is 4\n[ERROR] 2026-01-01 (PID:1, Device:1, RankID:1) ERR02200 DIST"
)


@pytest.mark.parametrize(
    ("text", "said", "is_consequence"),
    [
        (
            "NPU out of memory. Tried to allocate 260.00 MiB (NPU 0; 28.50 GiB total capacity; 10.24 GiB allocated)",
            "tried to allocate 260.00 MiB): lower --batch-size",
            False,
        ),
        (f"{HCCL}\nEI0002: The wait execution of the Notify register times out.", "waited too long for a peer", True),
        (f"{HCCL}\nEI0006: Getting socket times out.", "HCCL could not connect to all peers in time (EI0006)", True),
        (f"{HCCL}\nEI0015: topo exchange agent get socket timeout", "connect to all peers in time (EI0015)", True),
        (f"{HCCL}\nwait socket establish timeout, role[0]", "in time (wait socket establish timeout)", True),
        (f"{HCCL}\nEI0014: the IP address in the ranktable is inconsistent", "refuses the rank table (EI0014)", False),
        (f"{HCCL}\nEJ0003: Failed to bind the IP port.", "a port of HCCL's is taken (EJ0003)", False),
        (f"{HCCL}\nreason=[link error]", "the device failed (link error)", False),
        (f"{HCCL}\n[suspect remote error]", "a peer is gone", True),
        (HCCL, "HCCL failed in HcclAllReduce", False),
        ("EE1001: invalid device id, error code is 107001", "no such device", False),
        (
            "EE1001: [PID: 9] The argument is invalid.Reason: rtSetDevice failed, invalid device. set device=8",
            "no such device",
            False,
        ),
        ("dcmi: -8020 device is used", "in use by another process", False),
        ("dcmi model initialized failed, because the device is used. ret is -8020", "in use by another process", False),
        ("rtSetDevice failed, errorCode: 107001", "no such device", False),
        ("dsmi failed, error_code=-8020", "in use by another process", False),
        ("libascend_hal.so: cannot open shared object file", "the NPU's driver is not in this container", False),
    ],
)
def test_known_errors_are_explained_and_a_lost_peers_stay_recognisable(
    text: str, said: str, is_consequence: bool
) -> None:
    line = explain_runtime_error(text, "npu")
    assert line is not None
    assert said in line
    assert "\n" not in line
    assert blames_a_peer(line.encode()) is is_consequence


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'state'",
        "shape '[107001, 3]' is invalid for input of size 12",
        "could not convert -8020 to a label",
        "could not decode -8020",
        "libGL.so.1: cannot open shared object file: No such file or directory",
        "_video.so: undefined symbol: av_init",
        "no class 'EI00021' in the folder",
        "frame #3: HcclAllReduce + 0x10 (0x7f0 in /usr/local/Ascend/lib64/libhccl.so)",
    ],
)
def test_a_text_that_only_looks_like_an_npus_error_is_not_explained(text: str) -> None:
    assert explain_runtime_error(text, "npu") is None


@pytest.mark.parametrize("device", ["cpu", "npu"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("OSError: [Errno 24] Too many open files: '/tmp/pymp-x8zftpfy'", "too many open files: allow more"),
        ("RuntimeError: can't start new thread", "no further thread or process can start: allow more processes"),
        ("RuntimeError: unable to start watchdog thread", "no further thread or process can start: allow more"),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", "no further thread or process can start"),
        ("MemoryError: ", "out of memory: allow more memory (ulimit -v, or the container's limit)"),
        ("ImportError: libtorch_cpu.so: failed to map segment from shared object", "out of memory: allow more memory"),
        ("OSError: [Errno 12] Cannot allocate memory", "out of memory: allow more memory"),
        ("RuntimeError: std::bad_alloc", "out of memory: allow more memory"),
    ],
)
def test_a_limit_of_the_machine_is_named_with_the_way_to_raise_it(text: str, said: str, device: str) -> None:
    line = explain_runtime_error(text, device)
    assert line is not None
    assert line.startswith(said)
    assert not blames_a_peer(line.encode())


def test_an_npus_errors_are_not_explained_for_other_devices() -> None:
    assert explain_runtime_error("a lookup of EI0002 failed, error code is 107001", "cpu") is None
    words = explain_runtime_error("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "cuda")
    assert words is not None
    assert "tried to allocate 2.00 GiB" in words
