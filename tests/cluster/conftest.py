"""One cluster for all tests that need one. Without a cluster those tests are reported as not run, with the reason."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.support.background_follow import BackgroundFollow, start_background_follow
from tests.cluster.support.terminal import Terminal, own_namespace, restricted
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.artifacts import binaries, trainer_image
from tests.cluster.testbed.artifacts.trainer_image import TrainerImage
from tests.cluster.testbed.cluster import KUBECONFIG, Cluster, NotABedError
from tests.cluster.testbed.requirements import missing_image_requirement, missing_requirement
from tests.cluster.testbed.volcano import install
from tests.cluster.testbed.volcano.install import Volcano
from tests.conftest import set_timeouts

EVALUATION_IMAGES = 6
"""Images of each of the ten digits."""
TIMEOUT_S = 1200
"""A test that takes twenty minutes hangs."""
BUILD_S = 3000
"""The first test on a cluster may have to wait until Kubernetes is built."""


def _skip(reason: str) -> NoReturn:
    """Skip the test, or fail it under CI, where a skipped test would stay unnoticed."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    set_timeouts(items, Path(__file__).parent, fixture="cluster", timeout_s=TIMEOUT_S, build_s=BUILD_S)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Report a test as not run if a fixture needs the inside of the test bed and another cluster is in use."""
    try:
        yield
    except NotABedError as error:
        _skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Report a test as not run if it needs the inside of the test bed and another cluster is in use."""
    try:
        yield
    except NotABedError as error:
        _skip(str(error))


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Start a Kubernetes with two nodes of eight simulated NPUs, or use the cluster that PNAS_TEST_KUBECONFIG names."""
    kubeconfig = os.environ.get(KUBECONFIG)
    if kubeconfig:
        yield testbed.existing(Path(kubeconfig))
        return
    reason = missing_requirement()
    if reason is not None:
        _skip(f"{reason} ({KUBECONFIG} may name a cluster in its place)")
    with testbed.running() as bed, binaries.background_builds():
        yield bed


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """Create a namespace for one test."""
    with own_namespace(cluster) as name:
        yield name


@pytest.fixture(scope="package")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write real images as the trainer reads them; only a few for evaluation, because each epoch evaluates."""
    folder = tmp_path_factory.mktemp("digits") / "data"
    command = [sys.executable, "-m", "trainer", "data", "digits", "--to", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    for label in (folder / "val").iterdir():
        for image in sorted(label.iterdir())[EVALUATION_IMAGES:]:
            image.unlink()
    return folder


@pytest.fixture(scope="package")
def background_follow(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundFollow]:
    """Start the long follow with the first test that uses the fake trainer's image; test_log_following.py checks it."""
    with start_background_follow(cluster, tmp_path_factory.mktemp("cut")) as follow:
        yield follow


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path, digits: Path) -> Iterator[Terminal]:
    """Return a user's terminal in a namespace with both claims, for Kubernetes Jobs.

    Some modules override this fixture.
    """
    with restricted(cluster, namespace, tmp_path, digits, PNAS_BACKEND="batch") as user_terminal:
        yield user_terminal


@pytest.fixture(scope="package")
def built_image(tmp_path_factory: pytest.TempPathFactory) -> TrainerImage:
    """Build the trainer's real image, without torch."""
    reason = trainer_image.unsupported_python() or missing_requirement() or missing_image_requirement()
    if reason is not None:
        _skip(reason)
    return trainer_image.build(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="package")
def volcano(cluster: Cluster) -> Iterator[Volcano]:
    """Run Volcano on the cluster: the stand-in, or the real one."""
    with install.volcano(cluster) as installed:
        yield installed
