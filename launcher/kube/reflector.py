"""A reflector: the objects that a selector chooses, kept up to date in memory, whatever happens to the connection.

List, then watch from the list's version with bookmarks; when the server has forgotten that version (410), list again
and compare. A watch that is silent for longer than the server would let it be is a dead connection, and is opened anew.
What has gone is told with its last state: whoever looks now and then may have missed that it ever was in it.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from launcher.errors import LauncherError, UnreachableError
from launcher.kube.api import Api, ApiError, Json
from launcher.kube.resources import Resource
from launcher.kube.retry import GIVE_UP_S, Backoff

# The server ends a watch after so long; a connection that outlives that is dead. Short, because a job that has ended
# seems to go on for as long as nobody has noticed that its connection died without a word.
_WATCH_S = (45, 60)
_DEAD_S = 15.0
_SHORT_S = 1.0
_PAUSE_S = 0.5


@dataclass(frozen=True)
class Selector:
    """Which objects: of a kind, by labels or fields."""

    resource: Resource
    labels: str = ""
    fields: str = ""


class Reflector:
    """One thread that keeps `objects` as the server has them.

    Args:
        changed: called, in the reflector's thread, whenever something has changed or the reflector has failed.
        removed: called, in the reflector's thread, with each object that has gone as it was last, and whether its end
            was seen; what vanished while the cluster did not answer may have been more by then.
        give_up_s: how long the cluster may give no answer.
    """

    def __init__(
        self,
        api: Api,
        selector: Selector,
        changed: Callable[[], None],
        *,
        removed: Callable[[Json, bool], None] = lambda item, seen: None,
        give_up_s: float = GIVE_UP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._selector = selector
        self._changed = changed
        self._removed = removed
        self._backoff = Backoff(clock)
        self._give_up_s = give_up_s
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, Json] = {}
        self._gone: set[str] = set()
        self._stopped = threading.Event()
        self.error: LauncherError | None = None
        """Why it has ended; until then it keeps trying."""
        self._version = self._list()
        threading.Thread(target=self._run, name=f"watch {selector.resource}", daemon=True).start()

    @property
    def away(self) -> bool:
        """The cluster does not answer now."""
        return self._backoff.since is not None

    def objects(self) -> list[Json]:
        """Those that there are now, in no order."""
        with self._lock:
            return list(self._objects.values())

    def look(self) -> None:
        """Take in what the watch has not told of yet; of what is known, the watch goes on to tell.

        Raises:
            LauncherError: the cluster does not answer, or refuses.
        """
        found, _ = self._found()
        with self._lock:
            for item in found:
                uid = item["metadata"]["uid"]
                if uid not in self._gone:
                    self._objects.setdefault(uid, item)

    def stop(self) -> None:
        """End it; its thread ends with the next word from the server."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = self._clock()
            error = self._once()
            if error is None:
                if self._clock() - began < _SHORT_S:
                    # Something between here and the server ends every watch at once.
                    self._stopped.wait(_PAUSE_S)
            elif self._should_retry(error):
                self._stopped.wait(_PAUSE_S + self._backoff.delay_s())
            else:
                return

    def _once(self) -> LauncherError | None:
        """One watch to its end; why it could not be."""
        try:
            if not self._version:
                self._version = self._list()
            self._watch()
        except LauncherError as error:
            return error
        return None

    def _should_retry(self, error: LauncherError) -> bool:
        if isinstance(error, ApiError) and error.status == 410:
            self._version = ""
            return True
        if not self._backoff.should_retry(error, self._give_up_s):
            self.error = error
        self._changed()
        return self.error is None

    def _found(self) -> tuple[list[Json], str]:
        selector = self._selector
        return self._api.list(selector.resource, labels=selector.labels, fields=selector.fields)

    def _list(self) -> str:
        found, version = self._found()
        objects = {item["metadata"]["uid"]: item for item in found}
        with self._lock:
            vanished = [item for uid, item in self._objects.items() if uid not in objects]
        for item in vanished:
            self._forget(item, seen=False)
        with self._lock:
            self._objects = objects
        self._changed()
        return version

    def _forget(self, item: Json, *, seen: bool) -> None:
        # Told first: whoever finds it gone is to find its last state, too.
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
        what = f"watch {self._selector.resource}"
        with self._api.stream(path, query, timeout_s=seconds + _DEAD_S, what=what) as lines:
            if self._backoff.reset():
                self._changed()
            for line in lines:
                if self._stopped.is_set():
                    return
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise UnreachableError(f"{self._api.origin}: {what}: the answer is no JSON") from error
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
