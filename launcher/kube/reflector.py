"""A reflector: the objects that a selector chooses, kept up to date in memory through every cut of the connection.

It lists the objects, then watches from the list's version, with bookmarks. When the server has forgotten that version
(410), it lists again and compares. The server ends every watch after a while; a watch that is silent for longer has
lost its connection, and is replaced. The last state of a deleted object is reported, because a reader that looks only
now and then may never have seen that state.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from launcher.errors import ApiError, LauncherError, UnreachableError
from launcher.kube.api import Api, Json
from launcher.kube.resources import Resource
from launcher.kube.retry import Backoff

# The server ends a watch after this time; a connection that outlives it by `_DEAD_S` is lost. The time is short:
# until the reflector notices a lost connection, a job that has ended seems to go on.
_WATCH_S = (45, 60)
_DEAD_S = 15.0
_SHORT_S = 1.0
_PAUSE_S = 0.5


@dataclass(frozen=True)
class Selector:
    """Chooses objects of one kind, by labels or fields."""

    resource: Resource
    labels: str = ""
    fields: str = ""


class Reflector:
    """One thread that keeps `objects` as the server has them.

    Args:
        changed: called in the reflector's thread after each change, and when the reflector has failed.
        removed: called in the reflector's thread with the last known state of each deleted object, and whether the
            deletion was seen. After an unseen one, during an outage, the true last state can be a later one.
    """

    def __init__(
        self,
        api: Api,
        selector: Selector,
        changed: Callable[[], None],
        *,
        removed: Callable[[Json, bool], None] = lambda item, seen: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._selector = selector
        self._changed = changed
        self._removed = removed
        self._backoff = Backoff(clock)
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, Json] = {}
        self._gone: set[str] = set()
        self._stopped = threading.Event()
        self.error: LauncherError | None = None
        """Why the reflector has ended; None while it works."""
        self._version = self._list()
        threading.Thread(target=self._run, name=f"watch {selector.resource}", daemon=True).start()

    @property
    def away(self) -> bool:
        """Whether the cluster does not answer."""
        return self._backoff.since is not None

    def objects(self) -> list[Json]:
        """Return the objects that exist, in no order."""
        with self._lock:
            return list(self._objects.values())

    def add_unreported(self) -> None:
        """Add the objects that the watch has not reported yet. The known objects are left to the watch.

        Raises:
            LauncherError: the cluster does not answer, or refuses.
        """
        items, _ = self._list_objects()
        with self._lock:
            for item in items:
                uid = item["metadata"]["uid"]
                if uid not in self._gone:
                    self._objects.setdefault(uid, item)

    def stop(self) -> None:
        """End the reflector; its thread ends when the server sends something."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            began, pause_s = self._clock(), 0.0
            try:
                if not self._version:
                    self._version = self._list()
                self._watch()
            except LauncherError as error:
                if not self._should_retry(error):
                    return
                pause_s = _PAUSE_S + self._backoff.delay_s()
            else:
                if self._clock() - began < _SHORT_S:
                    # A proxy on the way to the server ends every watch at once.
                    pause_s = _PAUSE_S
            self._stopped.wait(pause_s)

    def _should_retry(self, error: LauncherError) -> bool:
        if isinstance(error, ApiError) and error.status == 410:
            self._version = ""
            return True
        if not self._backoff.should_retry(error):
            self.error = error
        self._changed()
        return self.error is None

    def _list_objects(self) -> tuple[list[Json], str]:
        selector = self._selector
        return self._api.list(selector.resource, labels=selector.labels, fields=selector.fields)

    def _list(self) -> str:
        items, version = self._list_objects()
        objects = {item["metadata"]["uid"]: item for item in items}
        with self._lock:
            vanished = [item for uid, item in self._objects.items() if uid not in objects]
        for item in vanished:
            self._forget(item, seen=False)
        with self._lock:
            self._objects = objects
        self._changed()
        return version

    def _forget(self, item: Json, *, seen: bool) -> None:
        # Report it first: a reader that no longer finds the object must find its last state.
        self._removed(item, seen)
        with self._lock:
            self._gone.add(item["metadata"]["uid"])
            self._objects.pop(item["metadata"]["uid"], None)

    def _watch(self) -> None:
        seconds = random.randint(*_WATCH_S)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
            "labelSelector": self._selector.labels,
            "fieldSelector": self._selector.fields,
        }
        path = self._selector.resource.path(self._api.namespace)
        action = f"watch {self._selector.resource}"
        with self._api.stream(path, query, timeout_s=seconds + _DEAD_S, action=action) as lines:
            if self._backoff.reset():
                self._changed()
            for line in lines:
                if self._stopped.is_set():
                    return
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise UnreachableError(f"{self._api.origin}: {action}: the answer is no JSON") from error
                self._take(event)

    def _take(self, event: Json) -> None:
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            raise ApiError(str(item.get("message", "")), status=int(item.get("code", 500)))
        self._version = item["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        if kind == "DELETED":
            self._forget(item, seen=True)
        else:
            with self._lock:
                self._objects[item["metadata"]["uid"]] = item
        self._changed()
