"""What holds for every test."""

import signal


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would every program that is started here and sent one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
