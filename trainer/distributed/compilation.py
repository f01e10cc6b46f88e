"""Whether torch's compiler computes, for the watchdog: a compilation takes minutes or an hour, and is not a hang."""

import threading
from contextlib import suppress

import psutil


class CompilerClock:
    """The processor time of a compilation: of the thread that makes the clock, and of the compilers that it starts."""

    def __init__(self) -> None:
        self._process, self._thread = psutil.Process(), threading.get_native_id()
        self._mark_s = self._used_s()

    def moved(self, least_s: float) -> bool:
        """Return whether the compilation has used `least_s` more seconds since this was last true."""
        used_s = self._used_s()
        # A process that has ended without a parent to wait for it takes its time away, which is movement too.
        if abs(used_s - self._mark_s) < least_s:
            return False
        self._mark_s = used_s
        return True

    def _used_s(self) -> float:
        used_s = 0.0
        with suppress(psutil.Error):
            used_s += sum(one.user_time + one.system_time for one in self._process.threads() if one.id == self._thread)
            # With the time of ended children, since a compilation starts hundreds of short compilers.
            used_s += sum(self._process.cpu_times()[2:4])
            for child in self._process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    used_s += sum(child.cpu_times()[:4])
        return used_s
