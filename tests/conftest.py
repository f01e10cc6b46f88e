"""Settings for every test, and what the test folders share."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Listen to Ctrl-C: a shell's background job ignores it, and the programs that a test starts would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def set_timeouts(items: Sequence[pytest.Item], folder: Path, *, fixture: str, timeout_s: float, build_s: float) -> None:
    """Limit the time of each test in `folder`; the first test that uses `fixture` gets `build_s` more to build it."""
    tests = [item for item in items if folder in item.path.parents]
    builders = [item for item in tests if fixture in getattr(item, "fixturenames", ())][:1]
    for item in tests:
        item.add_marker(pytest.mark.timeout(timeout_s + (build_s if item in builders else 0)))
