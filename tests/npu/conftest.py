"""Runs of the real trainer on emulated NPUs, shared among tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.conftest import Finished, digits, few_digits, train
from tests.local.interrupted import recipe
from tests.npu.machine import build, environment

__all__ = ["digits", "few_digits"]

SHORT = ("--epochs", "1", "--steps", "4")

Run = Callable[..., Finished]


@pytest.fixture(scope="session")
def npus() -> dict[str, str]:
    """The environment of a machine with eight emulated NPUs."""
    build()
    return environment()


@pytest.fixture
def on_npus(npus: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test starts finds the NPUs."""
    for name, value in npus.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def run(npus: dict[str, str], few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trains on the digits, with NPUs if `--device` says so, in a folder of the module's."""
    output = tmp_path_factory.mktemp("out")

    def start(name: str, *options: str, environ: dict[str, str] | None = None) -> Finished:
        given = {"--device": "npu", "--npus": "1"}
        missing = (word for flag, value in given.items() if flag not in options for word in (flag, value))
        return train(
            output, *recipe(*missing, *options), data=few_digits, name=name, environ={**npus, **(environ or {})}
        )

    return start
