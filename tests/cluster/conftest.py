"""One cluster for all tests that need one; where there can be none, they are reported as not run, with the reason."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.support.background_follow import Cut, cut_following
from tests.cluster.support.terminal import Terminal, own_namespace, restricted
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.artifacts import binaries, trainer_image
from tests.cluster.testbed.artifacts.trainer_image import Built
from tests.cluster.testbed.cluster import KUBECONFIG, Cluster, NotABedError
from tests.cluster.testbed.requirements import impediment, impediment_to_images
from tests.cluster.testbed.volcano import install
from tests.cluster.testbed.volcano.install import Volcano
from tests.conftest import set_timeouts

KEPT_TO_EVALUATE = 6
"""Images of each of the ten digits."""
TIMEOUT_S = 1200
"""A test that takes ten minutes hangs."""
BUILD_S = 3000
"""The first test on a cluster may have to wait until Kubernetes is built."""


def _not_run(reason: str) -> NoReturn:
    """Nobody would see in a CI's log that tests were left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    set_timeouts(items, Path(__file__).parent, fixture="cluster", timeout_s=TIMEOUT_S, build_s=BUILD_S)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """A fixture may want the inside of the bed, too."""
    try:
        yield
    except NotABedError as why:
        _not_run(str(why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Report a test that wants the inside of the bed, where another cluster is in use, as not run."""
    try:
        yield
    except NotABedError as why:
        _not_run(str(why))


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A Kubernetes with two nodes of eight simulated NPUs each, or the cluster that PNAS_TEST_KUBECONFIG names."""
    named = os.environ.get(KUBECONFIG)
    if named:
        yield testbed.named(Path(named))
        return
    reason = impediment()
    if reason is not None:
        _not_run(f"{reason} ({KUBECONFIG} may name a cluster in its place)")
    with testbed.running() as one, binaries.others_in_the_background():
        yield one


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with own_namespace(cluster) as name:
        yield name


@pytest.fixture(scope="package")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images in the layout that the trainer reads; few to evaluate on, as each epoch does."""
    folder = tmp_path_factory.mktemp("digits") / "data"
    command = [sys.executable, "-m", "trainer", "data", "digits", "--to", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    for label in (folder / "val").iterdir():
        for image in sorted(label.iterdir())[KEPT_TO_EVALUATE:]:
            image.unlink()
    return folder


@pytest.fixture(scope="package")
def cut(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    """Begun by the first test that has a speaker, and judged in test_log_following.py."""
    with cut_following(cluster, tmp_path_factory.mktemp("cut")) as one:
        yield one


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path, digits: Path) -> Iterator[Terminal]:
    """Somebody who may use a namespace with both claims, for Kubernetes Jobs; some modules have another."""
    with restricted(cluster, namespace, tmp_path, digits, PNAS_BACKEND="batch") as one:
        yield one


@pytest.fixture(scope="package")
def built_image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The trainer's real image, but for torch."""
    reason = trainer_image.impediment() or impediment() or impediment_to_images()
    if reason is not None:
        _not_run(reason)
    return trainer_image.build(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="package")
def volcano(cluster: Cluster) -> Iterator[Volcano]:
    """Volcano on that cluster: the stand-in, or the real one."""
    with install.volcano(cluster) as one:
        yield one
