"""What a device's runtime says when it fails, in plain words and with the next step.

Texts and codes are those of torch_npu, HCCL and CANN (its EI, EJ and EE numbers). A line that stands for a lost peer
keeps the code by which the supervisor knows it for a consequence.
"""

import re

FAULTS = r"hbm Multi-bit ECC error|device mem error|device task abort|link error|hccl op retry failed"

RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"out of memory\. Tried to allocate (?P<what>[\d.]+ [KMG]iB)",
            "the device is out of memory (tried to allocate {what}): lower --batch-size, compute it in parts with "
            "--micro-batch, or give --activation-checkpointing",
        ),
        (
            r"EI0002|Notify register times out",
            "HCCL waited too long for a peer (EI0002): look which rank's lines end first; HCCL_EXEC_TIMEOUT is how "
            "long it waits",
        ),
        (
            r"(?P<what>EI0006|EI0015)|wait socket establish timeout",
            "HCCL could not connect to all peers in time (EI0006): see that every rank has started and that the nodes "
            "reach each other; HCCL_IF_IP chooses the address, HCCL_CONNECT_TIMEOUT the time",
        ),
        (
            r"(?P<what>EI0004|EI0014)|is not a valid real path",
            "HCCL refuses the rank table ({what}): compare its device_ip and server_id with the nodes",
        ),
        (
            r"(?P<what>EI0019|EI0020|EJ0003)",
            "a port of HCCL's is taken ({what}): end the process that an earlier run left, or set HCCL_IF_BASE_PORT",
        ),
        (
            rf"reason=\[(?P<what>{FAULTS})\]",
            "the device failed ({what}): run npu-smi info, and take it or its node out",
        ),
        (r"suspect remote error", "a peer is gone (suspect remote error): see the other ranks' lines"),
        (r"HCCL function error: (?P<what>\w+)", "HCCL failed in {what}: its own words follow"),
        (
            r"-8020|NPU is busy|device is used",
            "the device is in use by another process: see npu-smi info, and end it or choose another device",
        ),
        (
            r"107001|EE1001",
            "no such device: ASCEND_RT_VISIBLE_DEVICES counts the container's devices from 0, whatever their number on "
            "the host",
        ),
        (
            r"libascend_hal\.so",
            "the NPU's driver is not in this container (libascend_hal.so): use Ascend Docker Runtime, or mount "
            "/usr/local/Ascend/driver",
        ),
        (
            r"(?P<what>lib(hccl|ascendcl|msprofiler|opapi|ge_runner)\w*\.so)",
            "CANN's environment is not set ({what}): source its set_env.sh first",
        ),
        (
            r"(DataLoader worker|Bus error).*(shm|shared memory)",
            "/dev/shm is full: give the pod more, or lower --workers",
        ),
    )
)


def explain(text: str) -> str | None:
    """One line for a person about a runtime's error; None if it is none that is known."""
    for pattern, words in RULES:
        match = pattern.search(text)
        if match is not None:
            return words.format(what=match.groupdict().get("what") or match[0])
    return None
