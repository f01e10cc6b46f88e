"""Fixtures of the tests on whole networks, which take too long for `make unit`."""

from tests.unit.training.conftest import one_thread

__all__ = ["one_thread"]
