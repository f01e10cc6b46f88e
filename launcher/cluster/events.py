"""The events of a job, by the cluster's components: the events of its object, its pods and its gang.

Read rights on events are independent of rights on jobs: without them a reason takes the place of the events.
"""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from launcher.jobs import JobEvent
from launcher.kinds import Kind
from launcher.kinds.objects import unix_time
from launcher.kube.api import Api, Json, if_allowed
from launcher.kube.resources import EVENTS

Events = tuple[list[Json], str]
"""Events, oldest first, and why the user cannot see them; empty if the user can."""


class Surroundings(NamedTuple):
    """The rest of what was read of a job, apart from its object and its pods.

    Attributes:
        gang: the object that schedules the pods together, and why the user cannot see it.
        events: of the job, its pods and its gang.
    """

    gang: tuple[Json | None, str]
    events: Events

    def events_about(self, item: Json) -> Events:
        """Return the events of one of these objects."""
        events, hidden = self.events
        uid = item["metadata"]["uid"]
        return [event for event in events if event.get("involvedObject", {}).get("uid") == uid], hidden

    def lines(self) -> list[JobEvent]:
        """Return the events as lines for the user, or the reason why the user cannot see them."""
        events, hidden = self.events
        return [JobEvent(time.time(), f"hidden from you: {hidden}")] if hidden else [*map(job_event, events)]


def events_about(api: Api, item: Json) -> Events:
    """Return the events of one object."""
    return _list_events(api, fields=f"involvedObject.uid={item['metadata']['uid']}")


def events_of_job(api: Api, kind: Kind, job: Json, parts: Iterable[Json]) -> Events:
    """Return the events of a job, of the objects that belong to it, and of its deleted pods."""
    uids = {item["metadata"]["uid"] for item in (job, *parts)}
    created = unix_time(job["metadata"].get("creationTimestamp")) or 0.0
    pod_names = kind.pod_names(job)

    def belongs(event: Json) -> bool:
        about = event.get("involvedObject", {})
        is_own_pod = about.get("kind") == "Pod" and pod_names.fullmatch(str(about.get("name"))) is not None
        return about.get("uid") in uids or (is_own_pod and event_time(event) >= created)

    return _list_events(api, part=lambda event: event if belongs(event) else None)


def job_event(event: Json) -> JobEvent:
    """Return an event as a line for the user."""
    about = event.get("involvedObject", {})
    count = event.get("count") or 1
    times = f" ({count} times)" if count > 1 else ""
    message = " ".join(str(event.get("message", "")).split())
    subject = f"{about.get('kind', '')} {about.get('name', '')}"
    return JobEvent(event_time(event), f"{subject}: {event.get('reason', '')}: {message}{times}")


def _list_events(api: Api, **choice: Any) -> Events:
    events, hidden = if_allowed(lambda: api.list(EVENTS, **choice)[0])
    return sorted(events or (), key=event_time), hidden


def event_time(event: Json) -> float:
    """Return when the event last happened, in seconds since 1970."""
    series = event.get("series") or {}
    timestamps = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    timestamp = next(filter(None, timestamps), event["metadata"]["creationTimestamp"])
    return unix_time(timestamp) or 0.0
