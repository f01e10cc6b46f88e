"""Runs of the real trainer on emulated NPUs, which tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import set_timeouts
from tests.local.conftest import TrainerResult, digits, few_digits, private_caches, train
from tests.local.resumable_runs import recipe
from tests.npu.machine import build, environment

__all__ = ["digits", "few_digits", "private_caches"]

SHORT = ("--epochs", "1", "--steps", "4")
O2 = ("--device", "npu", "--npus", "2", "--epochs", "1", "--steps", "12", "--precision", "O2")

TIMEOUT_S = 900
BUILD_S = 1800
"""The first test builds the emulation, which takes long on a new machine that builds other things at the same time."""

Run = Callable[..., TrainerResult]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    set_timeouts(items, Path(__file__).parent, fixture="npus", timeout_s=TIMEOUT_S, build_s=BUILD_S)


@pytest.fixture(scope="session")
def npus() -> dict[str, str]:
    """Return the environment of a machine with eight emulated NPUs."""
    build()
    return environment()


@pytest.fixture
def on_npus(npus: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Show the NPUs to every process that the test starts."""
    for name, value in npus.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def run(npus: dict[str, str], few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that trains on the digits, by default on one NPU; each run needs another name."""
    output = tmp_path_factory.mktemp("out")

    def start(name: str, *options: str, environ: dict[str, str] | None = None) -> TrainerResult:
        defaults = {"--device": "npu", "--npus": "1"}
        missing = (word for flag, value in defaults.items() if flag not in options for word in (flag, value))
        return train(
            output, *recipe(*missing, *options), data=few_digits, name=name, environ={**npus, **(environ or {})}
        )

    return start


@pytest.fixture(scope="session")
def in_o2(run: Run) -> TrainerResult:
    """Return a whole run of two devices in an NPU's default arithmetic, without apex."""
    done = run("o2", *O2)
    assert done.code == 0, done.stdout
    return done
