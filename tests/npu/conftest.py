"""Runs of the real trainer on emulated NPUs, shared among tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.conftest import Finished, digits, few_digits, train
from tests.local.resumable_runs import recipe
from tests.npu.machine import build, environment

__all__ = ["digits", "few_digits"]

SHORT = ("--epochs", "1", "--steps", "4")
O2 = ("--device", "npu", "--npus", "2", "--epochs", "1", "--steps", "12", "--precision", "O2")

HANGS_S = 900
BUILT_WITHIN_S = 1800

Run = Callable[..., Finished]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test builds the emulation, which takes long beside other builds of a machine that is new to it all."""
    here = (item for item in items if Path(__file__).parent in item.path.parents)
    for item in [item for item in here if "npus" in getattr(item, "fixturenames", ())][:1]:
        item.add_marker(pytest.mark.timeout(HANGS_S + BUILT_WITHIN_S))


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


@pytest.fixture(scope="session")
def run(npus: dict[str, str], few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trains on the digits, with NPUs if `--device` says so; each run has a name of its own."""
    output = tmp_path_factory.mktemp("out")

    def start(name: str, *options: str, environ: dict[str, str] | None = None) -> Finished:
        given = {"--device": "npu", "--npus": "1"}
        missing = (word for flag, value in given.items() if flag not in options for word in (flag, value))
        return train(
            output, *recipe(*missing, *options), data=few_digits, name=name, environ={**npus, **(environ or {})}
        )

    return start


@pytest.fixture(scope="session")
def in_o2(run: Run) -> Finished:
    """A whole run of two devices in the arithmetic that an NPU has by default, without apex."""
    done = run("o2", *O2)
    assert done.code == 0, done.stdout
    return done
