"""One cluster for all tests that need one; where there can be none, they are reported as not run, with the reason."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.cluster.testbed.cluster import Cluster, running
from tests.cluster.testbed.packages import missing_packages


def _reason() -> str | None:
    """Why no cluster can be started here."""
    if os.geteuid() != 0:
        return "the test bed needs root: it makes namespaces and mounts"
    if shutil.which("go") is None:
        return "the test bed needs Go 1.26 to build Kubernetes"
    return missing_packages()


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A Kubernetes with two nodes of eight simulated NPUs each."""
    reason = _reason()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with running() as one:
        yield one
