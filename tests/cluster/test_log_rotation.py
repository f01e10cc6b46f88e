"""Log rotation on a node that keeps few log files, on a separate cluster without Volcano: every loss is announced."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.podlogs.lines import LogPiece
from launcher.podlogs.transport import LogResponse, Transport
from tests.cluster.support import fake_trainer
from tests.cluster.support.cutting_proxy import CuttingProxy
from tests.cluster.support.pod_logs import LogContent, pod_logs_in, until
from tests.cluster.support.terminal import Terminal, port_of
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.storage import claims

LOG_FILES = 2
"""Files of a container's log, the current one included."""


@pytest.fixture(scope="module")
def rotating_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """Start a second cluster; use the first one only to make sure that this machine can run one."""
    labels = {"accelerator-type": "card"}
    with testbed.running(
        nodes=1, node_labels=labels, container_log_max_size="64Ki", container_log_max_files=LOG_FILES
    ) as second_cluster:
        assert cluster.kubeconfig != second_cluster.kubeconfig
        yield second_cluster


def rotated_files(rotating_cluster: Cluster, namespace: str) -> set[str]:
    """Return the log files of this namespace's pods on the node, without the current ones."""
    (node,) = rotating_cluster.nodes
    files = node.namespaces.run("find", "/var/log/pods", "-path", f"*{namespace}_*", "-type", "f").split()
    return {path for path in files if not path.endswith(".log")}


def wait_for_a_rotation(rotating_cluster: Cluster, namespace: str) -> None:
    before = rotated_files(rotating_cluster, namespace)
    until(lambda: rotated_files(rotating_cluster, namespace) - before)


def test_a_cluster_is_started_with_the_given_labels(rotating_cluster: Cluster) -> None:
    labels = rotating_cluster.get("node", "node1")["metadata"]["labels"]
    assert labels["accelerator-type"] == "card"
    assert "accelerator" not in labels
    testbed.create_namespace(rotating_cluster, "labelled", labels={"a": "b"})
    assert rotating_cluster.get("namespace", "labelled")["metadata"]["labels"]["a"] == "b"


def test_a_cluster_without_volcano_gets_kubernetes_jobs(rotating_cluster: Cluster, tmp_path: Path) -> None:
    testbed.create_namespace(rotating_cluster, "plain")
    claims(rotating_cluster, "plain", {name: tmp_path / name for name in ("pnas-data", "pnas-output")})
    result = Terminal(rotating_cluster, "plain", tmp_path, rotating_cluster.kubeconfig).submit(
        "--npus", "8", "--dry-run", "server"
    )
    assert result.returncode == 0, result.stderr
    assert "has no Volcano (--backend batch)" in result.stderr
    assert "the cluster accepts it; nothing was started" in result.stdout
    named = Terminal(rotating_cluster, "plain", tmp_path, rotating_cluster.kubeconfig).submit(
        "--npus", "8", "--backend", "volcano"
    )
    assert (named.returncode, named.stdout, len(named.stderr.splitlines())) == (5, "", 1), named.stderr
    assert "serves no jobs.batch.volcano.sh: is Volcano installed? Without it, use --backend batch" in named.stderr


def test_lines_removed_by_rotation_are_announced_and_no_others_are_missing(
    rotating_cluster: Cluster, tmp_path: Path
) -> None:
    lines = 12_000
    testbed.create_namespace(rotating_cluster, "launched")
    fake_trainer.load_image(rotating_cluster, tmp_path)
    terminal = Terminal(rotating_cluster, "launched", tmp_path, rotating_cluster.kubeconfig, {"PNAS_BACKEND": "batch"})
    fake_trainer.start_job(rotating_cluster, "launched", "much", lines, 1000, 1000)
    # The node has already removed the first lines.
    wait_for_a_rotation(rotating_cluster, "launched")
    with CuttingProxy(port_of(rotating_cluster), every_s=2, silence_s=2, seed=1) as proxy:
        config = terminal.kubeconfig_through(proxy.port)
        result = terminal.run("logs", "much", "-f", "--raw", "--kubeconfig", str(config))
    numbers = fake_trainer.line_numbers(result.stdout)
    assert numbers == sorted(set(numbers)), "in order, none repeated"
    missing = lines - len(numbers)
    assert missing > 0, "or this test proves nothing"
    assert f"{missing:,} missing" in result.stderr
    gaps = re.findall(
        r"^--- lines? (\d+)(?:-(\d+))? of rank 0 cpu:0 (?:is|are) missing ---", result.stderr, re.MULTILINE
    )
    announced = [(int(first), int(last or first)) for first, last in gaps]
    assert sum(last - first + 1 for first, last in announced) == missing
    assert len(rotated_files(rotating_cluster, "launched")) == LOG_FILES - 1, "as few as the cluster was started with"


def add_piece(content: LogContent, piece: LogPiece, requests: list[int], request: int) -> None:
    """Add the piece, and note for each line the request whose answer contained it."""
    content.add(piece)
    requests += [request] * (len(content.numbers) + 1 - len(requests))


@pytest.fixture
def log_requests(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the requests for logs, and return a function that returns their number."""
    number, get = 0, Transport.get

    def counted(
        transport: Transport, path: str, query: Mapping[str, str], *, idle_s: float | None = None
    ) -> AbstractContextManager[LogResponse]:
        nonlocal number
        number += 1
        return get(transport, path, query, idle_s=idle_s)

    monkeypatch.setattr(Transport, "get", counted)
    return lambda: number


def test_every_loss_by_rotation_between_two_requests_lies_in_an_announced_gap(
    rotating_cluster: Cluster, tmp_path: Path, log_requests: Callable[[], int]
) -> None:
    """Within one answer, a busy node's kubelet may lose lines that only numbers reveal: see the test above."""
    lines = 15_000
    testbed.create_namespace(rotating_cluster, "read")
    with pod_logs_in(rotating_cluster, "read", tmp_path) as pod_logs:
        state = pod_logs.watcher.state(uid := pod_logs.create("much", lines, 1000, 60, 0))
        until(lambda: state().running)
        with CuttingProxy(port_of(rotating_cluster), every_s=1, silence_s=0.5, seed=2) as proxy:
            items = iter(pod_logs.log("much", uid, port=proxy.port))
            content, requests = LogContent(), [0]
            while len(content.numbers) < 1000:
                add_piece(content, next(items), requests, log_requests())
            with proxy.unavailable():
                for _ in range(2):
                    wait_for_a_rotation(rotating_cluster, "read")
            for item in items:
                add_piece(content, item, requests, log_requests())
    pairs = zip([0, *content.numbers], [*content.numbers, lines + 1], strict=True)
    holes = {place: (before, after) for place, (before, after) in enumerate(pairs) if after != before + 1}
    assert all(after > before for before, after in holes.values()), "in order, none repeated"
    request_pairs = list(pairwise([*requests, log_requests()]))
    holes = {place: hole for place, hole in holes.items() if request_pairs[place][0] != request_pairs[place][1]}
    assert holes, "or this test proves nothing"
    gaps = dict(content.gaps)
    assert holes.keys() <= gaps.keys(), {place: (hole, request_pairs[place]) for place, hole in holes.items()}
    for place in holes:
        gap = gaps[place]
        assert gap.first_ns == content.stamps[place - 1]
        assert gap.last_ns is not None
        assert place == len(content.stamps) or gap.last_ns == content.stamps[place]
