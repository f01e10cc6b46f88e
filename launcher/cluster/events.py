"""What the cluster's components have said of a job: the events of its object, its pods and its gang.

Who may run jobs need not be allowed to see events: then there are none, and `hidden` says why.
"""

import re
from collections.abc import Iterable

from launcher.cluster.kinds import seconds
from launcher.jobs import JobEvent
from launcher.kube.api import Api, ApiError, Json
from launcher.kube.resources import EVENTS


class Events:
    """Those of one cluster, asked for whenever they are needed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.hidden = ""
        """Why they cannot be seen."""

    def about(self, item: Json) -> list[Json]:
        """Those of one object, oldest first."""
        return self._listed(f"involvedObject.uid={item['metadata']['uid']}")

    def of_job(self, job: Json, items: Iterable[Json]) -> list[JobEvent]:
        """Those of a job, of the objects that belong to it, and of its pods that are gone; oldest first."""
        known = {item["metadata"]["uid"] for item in (job, *items)}
        began = seconds(job["metadata"].get("creationTimestamp")) or 0.0
        name = _pods_of(job)

        def belongs(event: Json) -> bool:
            about = event.get("involvedObject", {})
            gone = about.get("kind") == "Pod" and name.fullmatch(str(about.get("name"))) and _time(event) >= began
            return about.get("uid") in known or bool(gone)

        return [JobEvent(_time(one), _text(one)) for one in self._listed() if belongs(one)]

    def _listed(self, fields: str = "") -> list[Json]:
        try:
            found, _ = self._api.list(EVENTS, fields=fields)
        except ApiError as error:
            if not error.of_rights:
                raise
            self.hidden = str(error)
            return []
        return sorted(found, key=_time)


def _pods_of(job: Json) -> re.Pattern[str]:
    """The names of its pods: those that are gone have no uid any more."""
    name, spec = re.escape(job["metadata"]["name"]), job.get("spec", {})
    if "tasks" in spec:
        return re.compile(f"{name}-worker-[0-9]+")
    index = "-[0-9]+" if spec.get("completionMode") == "Indexed" else ""
    return re.compile(f"{name}{index}-[a-z0-9]{{5}}")


def _time(event: Json) -> float:
    series = event.get("series") or {}
    stamps = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next(
        (seconds(stamp) or 0.0 for stamp in stamps if stamp), seconds(event["metadata"]["creationTimestamp"]) or 0
    )


def _text(event: Json) -> str:
    about = event.get("involvedObject", {})
    count = event.get("count") or 1
    times = f" ({count} times)" if count > 1 else ""
    message = " ".join(str(event.get("message", "")).split())
    return f"{about.get('kind', '')} {about.get('name', '')}: {event.get('reason', '')}: {message}{times}"
