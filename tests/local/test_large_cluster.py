"""`list`, `status` and `explain` with 1,000 nodes, 5,500 jobs and 20,000 events: few requests, little memory."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.backends import MOST_PROGRESS
from launcher.kinds.batch import BATCH_JOBS
from launcher.kube.access import ClusterAccess
from launcher.kube.api import connect
from launcher.kube.resources import EVENTS, NODES, PODS
from tests.local.large_cluster import LIVE, NPU, LargeCluster, name_of, run, serving

MOST_MIB = 300


@pytest.fixture(scope="module")
def large_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LargeCluster, Path]]:
    """Serve a large cluster; yield it and its kubeconfig."""
    words = ("render", "--backend", "batch", "--npus", "8", "--image", "r/pnas:1", "--name", "placeholder", "--json")
    done = subprocess.run([sys.executable, "-m", "launcher", *words], capture_output=True, text=True, check=True)
    cluster = LargeCluster(json.loads(done.stdout)["items"][-1])
    with serving(cluster, tmp_path_factory.mktemp("large")) as kubeconfig:
        yield cluster, kubeconfig


def test_a_large_cluster_costs_each_list_once_and_little_memory(
    large_cluster: tuple[LargeCluster, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, kubeconfig = large_cluster
    api = connect(ClusterAccess(kubeconfig=kubeconfig))
    lines = []
    for words, pages in (
        (("list",), {"jobs": 11, "pods": 11}),
        (("status", name_of(7)), {"events": 40, "pods": 1}),
        (("status", name_of(0)), {"events": 40, "nodes": 2, "pods": 1}),
        (("explain", name_of(0)), {"events": 40, "nodes": 2, "pods": 2}),
    ):
        cluster.requests.clear()
        out, memory, seconds = run(kubeconfig, *words)
        kinds = [path.rpartition("/")[2] for path in cluster.requests]
        began = time.monotonic()
        for resource in (EVENTS, NODES, PODS, BATCH_JOBS):
            if pages.get(resource.plural, 0) > 1 + (resource == PODS):
                api.list(resource)
        plain = time.monotonic() - began
        lines.append(f"{' '.join(words)}: {seconds:.1f} s ({plain:.1f} s for its plain lists), {memory} MiB")
        assert {kind: kinds.count(kind) for kind in pages} == pages, words
        assert memory < MOST_MIB, lines
        if words == ("list",):
            # On a busy machine fewer answers come in time.
            assert 0 < out.count(" 12 %") <= kinds.count("log") <= MOST_PROGRESS, out
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *lines, ""]))
    assert f"all {8 * (LIVE - 1)} {NPU} that the job could have are in use" in out, out
