"""Ctrl-C, neither lost nor too early: held back while a job comes into being, raised again where Python drops it.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a weak reference's callback or a finaliser
(each import runs some) the interpreter prints and forgets it, and a person would have typed Ctrl-C for nothing.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Long enough for the main thread to leave the place that drops exceptions, too short for a person to notice.
_AGAIN_S = 0.02


def keep_interrupts() -> None:
    """From now on an interrupt that the interpreter drops comes once more."""
    sys.unraisablehook = _come_again


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back for the moment in which a job comes into being, half of which is no job."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _come_again(dropped: "sys.UnraisableHookArgs") -> None:
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    # Not from here: this function's own exceptions are dropped too.
    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()
