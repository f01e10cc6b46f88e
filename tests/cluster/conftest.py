"""One cluster for all tests that need one; where there can be none, they are reported as not run, with the reason."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.launching import Terminal, restricted
from tests.cluster.testbed import binaries, volcano_install
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import KUBECONFIG, Cluster, NotABedError
from tests.cluster.testbed.packages import impediment
from tests.cluster.testbed.volcano_install import Volcano


def _not_run(reason: str) -> NoReturn:
    """Nobody would see in a CI's log that tests were left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


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
    with testbed.running() as one, binaries.helms_in_the_background():
        yield one


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own; what is in it goes with it, in the background."""
    name = f"pnas-test-{uuid.uuid4().hex[:8]}"
    testbed.namespace(cluster, name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="package")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images in the layout that the trainer reads."""
    folder = tmp_path_factory.mktemp("digits") / "data"
    command = [sys.executable, "-m", "trainer", "data", "digits", "--to", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path, digits: Path) -> Iterator[Terminal]:
    """Somebody who may use a namespace with both claims, for Kubernetes Jobs; some modules have another."""
    with restricted(cluster, namespace, tmp_path, digits, PNAS_BACKEND="batch") as one:
        yield one


@pytest.fixture(scope="package")
def volcano(cluster: Cluster) -> Iterator[Volcano]:
    """Volcano on that cluster: the stand-in, or the real one."""
    with volcano_install.volcano(cluster) as one:
        yield one
