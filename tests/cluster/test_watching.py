"""What a reflector tells while its watch is cut, too old, or away, against a real API server."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from launcher.cluster.jobs import ClusterBackend
from launcher.errors import LauncherError, UnreachableError
from launcher.jobs import Block, Ended, JobRef, Phase
from launcher.kube.api import Api, ApiError, Json
from launcher.kube.connection import connect
from launcher.kube.place import Place
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import EVENTS, PODS
from tests.cluster.support import fake_trainer
from tests.cluster.support.background_follow import Cut
from tests.cluster.support.waiting import until
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.control_plane import ETCD


@pytest.fixture
def api(cluster: Cluster, namespace: str) -> Api:
    return connect(Place(kubeconfig=cluster.kubeconfig, namespace=namespace))


def made(api: Api, name: str) -> Json:
    """An event: of these an API server has no memory of its own, so that what etcd has forgotten it has, too."""
    about = {"kind": "Pod", "name": "pod", "namespace": api.namespace}
    metadata = {"name": name, "namespace": api.namespace}
    return api.create(EVENTS, {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": about})


def forget(cluster: Cluster, version: str) -> None:
    """Have etcd forget what was before, as the API server has it do every few minutes."""
    asked = f"urllib.request.urlopen({ETCD + '/v3/kv/compaction'!r}, {json.dumps({'revision': version}).encode()!r})"
    cluster.nodes[0].namespaces.run(sys.executable, "-c", f"import urllib.request; {asked}")


class RecordingReflector(Reflector):
    """Keeps the errors that its watches ended with."""

    errors: tuple[LauncherError, ...] = ()

    def _should_retry(self, error: LauncherError) -> bool:
        self.errors = (*self.errors, error)
        return super()._should_retry(error)


def test_a_version_that_the_server_has_forgotten_is_listed_anew(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a laptop's sleep, in which something has gone."""
    made(api, "before")
    long_ago = api.list(EVENTS)
    api.delete(EVENTS, "before")
    forget(cluster, made(api, "meanwhile")["metadata"]["resourceVersion"])
    told: list[tuple[str, bool]] = []
    with monkeypatch.context() as patch:
        patch.setattr(Reflector, "_found", lambda _: long_ago)
        patch.setattr(Reflector, "_run", lambda _: None)
        one = RecordingReflector(
            api,
            Selector(EVENTS),
            lambda: None,
            removed=lambda item, seen: told.append((item["metadata"]["name"], seen)),
        )
    threading.Thread(target=one._run, daemon=True).start()
    try:
        until(lambda: {item["metadata"]["name"] for item in one.objects()} == {"meanwhile"})
        made(api, "after")
        until(lambda: len(one.objects()) == 2)
        api.delete(EVENTS, "after")
        until(lambda: len(told) == 2)
    finally:
        one.stop()
    (error,) = one.errors
    assert isinstance(error, ApiError)
    assert error.status == 410
    assert told == [("before", False), ("after", True)], "what vanished, and what was seen to go"
    assert one.error is None
    assert not one.away


def test_a_pod_that_was_made_while_the_watch_of_pods_was_away_is_read_too(
    cluster: Cluster, namespace: str, cut: Cut, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job's end is seen first, as where a cut has hit the one watch and not the other."""
    assert cut.cutter.port, "the nodes have the image"
    backend = ClusterBackend("batch", api)
    stream, cannot = api.stream, threading.Event()

    def away(
        path: str, query: dict[str, str], *, timeout_s: float, what: str
    ) -> AbstractContextManager[Iterator[bytes]]:
        if what.endswith(f" {PODS}") and not cannot.is_set():
            raise UnreachableError("the watch was cut")
        return stream(path, query, timeout_s=timeout_s, what=what)

    monkeypatch.setattr(api, "stream", away)
    fake_trainer.create(cluster, namespace, "twice", 500, 0, 20, 1, retries=1)
    until(lambda: [pod["status"]["phase"] for pod in backend.pods("twice")] == ["Failed"])
    shown, items = "", []
    for item in backend.logs(JobRef("batch", "twice"), follow=True):
        items.append(item)
        if isinstance(item, Block):
            shown += item.data.decode()
        if len(fake_trainer.numbers(shown)) > 500:
            cannot.set()
    assert fake_trainer.numbers(shown) == [*range(1, 501), *range(1, 501)]
    assert isinstance(items[-1], Ended)
    assert items[-1].state.phase is Phase.FAILED
    assert items[-1].state.restarts == 1
