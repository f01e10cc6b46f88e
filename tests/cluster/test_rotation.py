"""A node that keeps little of a log, on a cluster of its own without Volcano: what it has taken is announced."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.podlogs.batch import Item
from tests.cluster.support import fake_trainer
from tests.cluster.support.cutting_proxy import Cutter
from tests.cluster.support.pod_logs import Seen, bench_on, until
from tests.cluster.support.terminal import Terminal, port_of
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.storage import claims

KEPT = 2
"""Files of a container's log, the current one included."""


@pytest.fixture(scope="module")
def rotating(cluster: Cluster) -> Iterator[Cluster]:
    """It needs `cluster` only for what that makes sure of: that there can be one here."""
    labels = {"accelerator-type": "card"}
    with testbed.running(
        nodes=1, node_labels=labels, container_log_max_size="64Ki", container_log_max_files=KEPT
    ) as one:
        assert cluster.kubeconfig != one.kubeconfig
        yield one


def rotated(rotating: Cluster, namespace: str) -> set[str]:
    """The files beside the current one in which the node has a log of this namespace's pods."""
    (node,) = rotating.nodes
    found = node.namespaces.run("find", "/var/log/pods", "-path", f"*{namespace}_*", "-type", "f").split()
    return {path for path in found if not path.endswith(".log")}


def wait_for_a_rotation(rotating: Cluster, namespace: str) -> None:
    before = rotated(rotating, namespace)
    until(lambda: rotated(rotating, namespace) - before)


def test_a_cluster_is_started_with_labels_of_its_own(rotating: Cluster) -> None:
    labels = rotating.get("node", "node1")["metadata"]["labels"]
    assert labels["accelerator-type"] == "card"
    assert "accelerator" not in labels
    testbed.namespace(rotating, "labelled", labels={"a": "b"})
    assert rotating.get("namespace", "labelled")["metadata"]["labels"]["a"] == "b"


def test_a_cluster_without_volcano_is_given_kubernetes_jobs(rotating: Cluster, tmp_path: Path) -> None:
    testbed.namespace(rotating, "plain")
    claims(rotating, "plain", {name: tmp_path / name for name in ("pnas-data", "pnas-output")})
    done = Terminal(rotating, "plain", tmp_path, rotating.kubeconfig).submit("--npus", "8", "--dry-run", "server")
    assert done.returncode == 0, done.stderr
    assert "has no Volcano (--backend batch)" in done.stderr
    assert "the cluster accepts it; nothing was started" in done.stdout
    named = Terminal(rotating, "plain", tmp_path, rotating.kubeconfig).submit("--npus", "8", "--backend", "volcano")
    assert (named.returncode, named.stdout, len(named.stderr.splitlines())) == (5, "", 1), named.stderr
    assert "serves no jobs.batch.volcano.sh: is Volcano installed? Without it, use --backend batch" in named.stderr


def test_what_rotation_has_taken_is_announced_and_nothing_else_is_missing(rotating: Cluster, tmp_path: Path) -> None:
    lines = 12_000
    testbed.namespace(rotating, "launched")
    fake_trainer.load(rotating, tmp_path)
    terminal = Terminal(rotating, "launched", tmp_path, rotating.kubeconfig, {"PNAS_BACKEND": "batch"})
    fake_trainer.create(rotating, "launched", "much", lines, 1000, 1000)
    # Of its first lines none is left for anybody who asks now.
    wait_for_a_rotation(rotating, "launched")
    with Cutter(port_of(rotating), every_s=2, silence_s=2, seed=1) as cutter:
        config = terminal.through(cutter.port)
        done = terminal.run("logs", "much", "-f", "--raw", "--kubeconfig", str(config))
    shown = fake_trainer.numbers(done.stdout)
    assert shown == sorted(set(shown)), "in order, none repeated"
    missing = lines - len(shown)
    assert missing > 0, "or this test proves nothing"
    assert f"{missing:,} missing" in done.stderr
    said = re.findall(r"^--- lines? (\d+)(?:-(\d+))? of rank 0 cpu:0 (?:is|are) missing ---", done.stderr, re.MULTILINE)
    announced = [(int(first), int(last or first)) for first, last in said]
    assert sum(last - first + 1 for first, last in announced) == missing
    assert len(rotated(rotating, "launched")) == KEPT - 1, "as few as the cluster was started with"


def take(seen: Seen, item: Item, answers: list[int], answer: int) -> None:
    """Take it, and note of each line with which of the server's answers it came."""
    seen.take(item)
    answers += [answer] * (len(seen.numbers) + 1 - len(answers))


def test_every_loss_by_rotation_between_two_answers_lies_in_an_announced_gap(rotating: Cluster, tmp_path: Path) -> None:
    """Within one answer, where a busy node's kubelet may lose some, only numbers tell: see the test before."""
    lines = 15_000
    testbed.namespace(rotating, "read")
    with bench_on(rotating, "read", tmp_path) as bench:
        state = bench.watcher.state(uid := bench.create("much", lines, 1000, 60, 0))
        until(lambda: state().running)
        with Cutter(port_of(rotating), every_s=1, silence_s=0.5, seed=2) as cutter:
            log = bench.log("much", uid, port=cutter.port)
            items, seen, answers = iter(log), Seen(), [0]
            while len(seen.numbers) < 1000:
                take(seen, next(items), answers, log.answers)
            with cutter.away():
                for _ in range(2):
                    wait_for_a_rotation(rotating, "read")
            for item in items:
                take(seen, item, answers, log.answers)
    pairs = zip([0, *seen.numbers], [*seen.numbers, lines + 1], strict=True)
    holes = {place: (before, after) for place, (before, after) in enumerate(pairs) if after != before + 1}
    assert all(after > before for before, after in holes.values()), "in order, none repeated"
    of_answers = list(pairwise([*answers, log.answers]))
    holes = {place: hole for place, hole in holes.items() if of_answers[place][0] != of_answers[place][1]}
    assert holes, "or this test proves nothing"
    gaps = dict(seen.gaps)
    assert holes.keys() <= gaps.keys(), {place: (hole, of_answers[place]) for place, hole in holes.items()}
    for place in holes:
        gap = gaps[place]
        assert gap.first_ns == seen.stamps[place - 1]
        assert gap.last_ns is not None
        assert place == len(seen.stamps) or gap.last_ns == seen.stamps[place]
