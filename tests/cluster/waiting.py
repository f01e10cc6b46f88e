"""Waiting for something that happens on a cluster, by looking again and again."""

import time
from collections.abc import Callable


def until(
    true: Callable[[], object],
    otherwise: Callable[[], object] = lambda: "it does not come",
    *,
    within_s: float = 120,
    every_s: float = 0.2,
) -> None:
    """Come back when `true`; fail with what `otherwise` says if that takes too long."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(every_s)
