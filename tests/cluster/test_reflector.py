"""A reflector on a real API server: a watch that is cut, too old, or unavailable."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from launcher.cluster.jobs import ClusterJobs
from launcher.errors import UnreachableError
from launcher.jobs import Ended, JobRef, LogBlock, Phase
from launcher.kinds import kind_named
from launcher.kube.access import ClusterAccess
from launcher.kube.api import Api, Json, connect
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import EVENTS, PODS, Resource
from tests.cluster.support import fake_trainer
from tests.cluster.support.background_follow import BackgroundFollow
from tests.cluster.support.waiting import until
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.control_plane import ETCD


@pytest.fixture
def api(cluster: Cluster, namespace: str) -> Api:
    return connect(ClusterAccess(kubeconfig=cluster.kubeconfig, namespace=namespace))


def create_event(api: Api, name: str) -> Json:
    """Create an event. The API server does not cache events: after a compaction of etcd it lacks them, too."""
    about = {"kind": "Pod", "name": "pod", "namespace": api.namespace}
    metadata = {"name": name, "namespace": api.namespace}
    return api.create(EVENTS, {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": about})


def compact(cluster: Cluster, version: str) -> None:
    """Compact etcd up to this version, as the API server does every few minutes."""
    request = f"urllib.request.urlopen({ETCD + '/v3/kv/compaction'!r}, {json.dumps({'revision': version}).encode()!r})"
    cluster.nodes[0].namespaces.run(sys.executable, "-c", f"import urllib.request; {request}")


def watch_status(api: Api, version: str) -> int | None:
    """Return the status with which the API server refuses to watch from this version; None if it does not refuse."""
    query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "10"}
    with api.stream(EVENTS.path(api.namespace), query, timeout_s=20, action="watch events") as lines:
        event = json.loads(next(lines))
    return event["object"]["code"] if event["type"] == "ERROR" else None


class OldList:
    """Replaces the first answer of `Api.list` by an old one, like the list of a reflector that slept for long."""

    def __init__(self, api: Api, old: tuple[list[Json], str]) -> None:
        self._list = api.list
        self._old = old
        self.calls = 0

    def __call__(self, resource: Resource, *, labels: str = "", fields: str = "") -> tuple[list[Json], str]:
        self.calls += 1
        return self._old if self.calls == 1 else self._list(resource, labels=labels, fields=fields)


def test_a_compacted_version_leads_to_a_new_list(cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """This happens after a laptop's sleep, during which an object was deleted."""
    create_event(api, "before")
    old_list = api.list(EVENTS)
    api.delete(EVENTS, "before")
    compact(cluster, create_event(api, "meanwhile")["metadata"]["resourceVersion"])
    assert watch_status(api, old_list[1]) == 410, "or this test proves nothing"
    lists = OldList(api, old_list)
    monkeypatch.setattr(api, "list", lists)
    removals: list[tuple[str, bool]] = []
    reflector = Reflector(
        api,
        Selector(EVENTS),
        lambda: None,
        removed=lambda item, seen: removals.append((item["metadata"]["name"], seen)),
    )
    try:
        until(lambda: {item["metadata"]["name"] for item in reflector.objects()} == {"meanwhile"})
        create_event(api, "after")
        until(lambda: len(reflector.objects()) == 2)
        api.delete(EVENTS, "after")
        until(lambda: len(removals) == 2)
    finally:
        reflector.stop()
    assert lists.calls == 2, "the old list, and one new list"
    assert removals == [("before", False), ("after", True)], "what vanished, and what was seen to go"
    assert reflector.error is None
    assert not reflector.away


def test_a_pod_that_started_while_the_watch_was_down_is_read_too(
    cluster: Cluster, namespace: str, background_follow: BackgroundFollow, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's end is seen first, for example after a cut of only one of the two watches."""
    assert background_follow.proxy.port, "the nodes have the image"
    backend = ClusterJobs(kind_named("batch"), api)
    stream, restored = api.stream, threading.Event()

    def fail_pod_watch(
        path: str, query: dict[str, str], *, timeout_s: float, action: str
    ) -> AbstractContextManager[Iterator[bytes]]:
        if action.endswith(f" {PODS}") and not restored.is_set():
            raise UnreachableError("the watch was cut")
        return stream(path, query, timeout_s=timeout_s, action=action)

    monkeypatch.setattr(api, "stream", fail_pod_watch)
    fake_trainer.start_job(cluster, namespace, "twice", 500, 0, 20, 1, retries=1)
    until(lambda: [pod["status"]["phase"] for pod in backend.pods("twice")] == ["Failed"])
    text, items = "", []
    for item in backend.logs(JobRef("batch", "twice"), follow=True):
        items.append(item)
        if isinstance(item, LogBlock):
            text += item.data.decode()
        if len(fake_trainer.line_numbers(text)) > 500:
            restored.set()
    assert fake_trainer.line_numbers(text) == [*range(1, 501), *range(1, 501)]
    assert isinstance(items[-1], Ended)
    assert items[-1].state.phase is Phase.FAILED
    assert items[-1].state.restarts == 1
