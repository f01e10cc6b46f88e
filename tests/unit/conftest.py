"""Refuse to import torch in unit tests outside tests/unit/training: its import takes two seconds."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

TRAINING = "tests.unit.training."


class _RefuseTorch:
    """A finder of modules that lets a test fail when it, or the code under test, imports torch."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        assert fullname != "torch", "this unit test imports torch: only those in tests/unit/training can do that"
        return None


@pytest.fixture(autouse=True)
def _no_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.module.__name__.startswith(TRAINING):
        monkeypatch.setattr(sys, "meta_path", [_RefuseTorch(), *sys.meta_path])
