"""Checks of a device for the tests of the runner: each one passes, or does what a broken device does to a process."""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time

from trainer.proof.check import WAITING, CheckOutcome, Context

PASSED = CheckOutcome("passed", "as it should be", figures={"speed": 2.0, "nothing": float("nan")})
FOR_EVER = "import time; time.sleep(1000)"
"""Longer than a test may last, as the other sleeps of 1,000 s: the runner must kill the process."""
_opened: list[str] = []


def passes(_context: Context) -> CheckOutcome:
    return PASSED


def tells_its_variables(context: Context) -> CheckOutcome:
    names = ("ACL_OP_COMPILER_CACHE_DIR", "HCCL_CONNECT_TIMEOUT")
    values = [os.environ.get(name, "nothing").replace(str(context.shared), "…") for name in names]
    return CheckOutcome("passed", " ".join(values))


def fails(_context: Context) -> CheckOutcome:
    return CheckOutcome("failed", "1 + 1 = 3", "2, by arithmetic", "replace the device")


def raises(_context: Context) -> CheckOutcome:
    raise RuntimeError("EZ9999\nthe driver says no")


def has_a_defect(_context: Context) -> CheckOutcome:
    raise AttributeError("'CheckOutcome' object has no attribute 'no_such_field'")


def hangs(context: Context) -> CheckOutcome:
    """Hang, with a child in another session."""
    subprocess.Popen([sys.executable, "-c", FOR_EVER], start_new_session=True)
    context.mark("copying 1 MiB")
    time.sleep(1000)
    return PASSED


def hangs_second_time(context: Context) -> CheckOutcome:
    """Open the device; hang in a second process, as a device does that a first one has left broken."""
    tries = context.shared / "tries"
    tries.write_text(tries.read_text() + "." if tries.exists() else ".")
    if len(tries.read_text()) > 1:
        context.mark("opening")
        time.sleep(1000)
    return CheckOutcome("passed", "a name")


def dies(context: Context) -> CheckOutcome:
    context.mark("adding")
    print("noise " * 100 + "\nhccp: lost \x1b[31mthe link", flush=True)  # noqa: T201  # a library's words
    os.kill(os.getpid(), signal.SIGKILL)
    return PASSED


def one_rank_dies(context: Context) -> CheckOutcome:
    context.mark("exchange 7")
    if context.place.rank == 1:
        sys.exit(9)
    time.sleep(1000)
    return PASSED


def ranks_differ(context: Context) -> CheckOutcome:
    return fails(context) if context.place.rank else PASSED


def one_rank_fails(context: Context) -> CheckOutcome:
    """Fail on one rank while the other ones wait for it."""
    if context.place.rank == 1:
        return fails(context)
    context.mark(f"{WAITING} exchange 3")
    time.sleep(1000)
    return PASSED


def peers_of_a_dead_rank_fail(context: Context) -> CheckOutcome:
    context.mark("exchange 5")
    if context.place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return CheckOutcome("failed", "connection closed by peer")


def only_first_works(context: Context) -> CheckOutcome:
    if context.place.rank == 0:
        context.mark("a run with all devices")
        time.sleep(1000)
    return PASSED


def one_rank_hangs(context: Context) -> CheckOutcome:
    context.mark("entering exchange 3" if context.place.rank == 1 else f"{WAITING} exchange 3")
    time.sleep(1000)
    return PASSED


def second_device_hangs(context: Context) -> CheckOutcome:
    """Hang wherever the second device takes part, on both of a pair, and note each try."""
    with (context.output / "tries").open("a") as file:
        file.write(f"{context.place.name}\n")
    if 1 in context.place.devices:
        context.mark("timing all-reduces")
        time.sleep(1000)
    return PASSED


SLOW_TURNS = {0: (3,), 1: (1, 2, 3, 4), 2: (2,), 3: (1, 2, 3)}
"""For each device, in which of its turns others disturb it; they disturb the second one always."""


def is_disturbed(context: Context) -> CheckOutcome:
    """Note which device begins and ends, and return its rate in this turn."""
    device, notes = context.place.devices[0], context.output / "turns"
    with notes.open("a") as file:
        file.write(f"{device} begins\n")
    turn = notes.read_text().count(f"{device} begins")
    with notes.open("a") as file:
        file.write(f"{device} ends\n")
    rate = 1.0 if turn in SLOW_TURNS[device] else 4.0
    return CheckOutcome("passed", f"turn {turn}", figures={"matmul_fp32_512_tflops": rate})


def prints_garbage_everywhere(_context: Context) -> CheckOutcome:
    """Write to each descriptor: to standard output, and lines that are no messages to the runner's pipe."""
    _write_everywhere(b'\xff{"check": 3}\n[]\n{"outcome": 7}\n{"check": "x", "outcome": 1}\n', first=1)
    return PASSED


def writes_a_torn_line(_context: Context) -> CheckOutcome:
    _write_everywhere(b'{"check": "torn", "outcome": {"verdict": "passed", "mea', first=3)
    os._exit(3)


def _write_everywhere(text: bytes, *, first: int) -> None:
    for descriptor in range(first, 20):
        with contextlib.suppress(OSError):
            os.write(descriptor, text)


def leaves_children(_context: Context) -> CheckOutcome:
    """Leave a child that holds all pipes of this process."""
    if os.fork() == 0:
        time.sleep(1000)
    return PASSED


def closes_its_streams(_context: Context) -> CheckOutcome:
    os.close(1)
    os.close(2)
    return PASSED


def writes_a_file(context: Context) -> CheckOutcome:
    (context.folder / "data").write_bytes(b"1")
    return PASSED


def opens_an_ascend_910a(context: Context) -> CheckOutcome:
    _opened.append(context.place.name)
    return CheckOutcome("passed", "Ascend910A")


def tells_what_its_process_has_opened(_context: Context) -> CheckOutcome:
    return CheckOutcome("passed", " ".join(_opened) or "nothing")


def frees_its_device_at_its_end(context: Context) -> CheckOutcome:
    atexit.register((context.output / f"{context.place.name} is free").touch)
    return PASSED


def hangs_at_its_end(_context: Context) -> CheckOutcome:
    atexit.register(time.sleep, 1000)
    return PASSED
