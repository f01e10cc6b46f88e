"""A worker never outlives its supervisor, not even one that was killed and could not say so.

Without this a killed supervisor leaves processes behind that hold every device of the node.
"""

import os
import signal
import threading

STDIN = 0


def die_with_supervisor() -> None:
    """End this process and its children as soon as the supervisor is gone.

    The supervisor holds the other end of stdin and never writes to it: reading ends when the supervisor does. Call it
    first thing in a worker, and only there.
    """
    threading.Thread(target=_wait_and_die, name="lifeline", daemon=True).start()


def _wait_and_die() -> None:
    while os.read(STDIN, 1):
        pass
    if os.getpgrp() == os.getpid():  # the supervisor has started us as the leader of our own group
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
