"""Which events belong to a job: the events of its objects, and none of another job with a similar name."""

from typing import Any, cast

import pytest

from launcher.cluster.events import events_about, events_of_job
from launcher.errors import ApiError
from launcher.kinds import kind_named
from launcher.kube.api import Api
from launcher.kube.resources import Resource

META = {"name": "ladder", "uid": "j", "creationTimestamp": "2026-11-25T10:00:00Z"}
JOB = {"metadata": META, "spec": {}}
INDEXED = {"metadata": META, "spec": {"completionMode": "Indexed"}}
GANG = {"metadata": META, "spec": {"tasks": []}}


def event(kind: str, name: str, uid: str = "", at: str = "2026-11-25T10:00:05Z") -> dict[str, Any]:
    item = {"kind": kind, "name": name, "uid": uid}
    return {"involvedObject": item, "reason": "R", "message": f"of {name}", "metadata": {"creationTimestamp": at}}


class Listing:
    """An API server that only lists events."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = list(events)

    def list(self, _kind: Resource, *, fields: str = "", part: Any = lambda event: event) -> tuple[list[Any], str]:
        uid = fields.removeprefix("involvedObject.uid=")
        events = [event for event in self.events if not fields or event["involvedObject"]["uid"] == uid]
        return list(filter(None, map(part, events))), "1"


@pytest.mark.parametrize(
    ("job", "item", "belongs"),
    [
        (JOB, event("Job", "ladder", "j"), True),
        (JOB, event("Pod", "ladder-x2b4c", "known"), True),
        (JOB, event("Pod", "ladder-x2b4c", "gone"), True),
        (INDEXED, event("Pod", "ladder-0-x2b4c", "gone"), True),
        (GANG, event("Pod", "ladder-worker-1", "gone"), True),
        (JOB, event("Job", "ladder-a", "other"), False),
        (JOB, event("Pod", "ladder-2-x2b4c", "of ladder-2"), False),
        (JOB, event("Pod", "ladder-a-x2b4c", "other"), False),
        (JOB, event("Pod", "ladder-x2b4c", "gone", at="2026-11-25T09:00:00Z"), False),
    ],
)
def test_an_event_belongs_to_the_job_of_its_object(job: dict[str, Any], item: dict[str, Any], belongs: bool) -> None:
    kind = kind_named("volcano" if job is GANG else "batch")
    events, _ = events_of_job(cast("Api", Listing(item)), kind, job, [{"metadata": {"uid": "known"}}])
    assert len(events) == belongs


def test_events_are_sorted_by_time() -> None:
    late, early = event("Job", "b", "j", at="2026-11-25T10:00:09Z"), event("Job", "a", "j")
    events, _ = events_about(cast("Api", Listing(late, early)), JOB)
    assert [event["involvedObject"]["name"] for event in events] == ["a", "b"]


def test_a_user_without_rights_on_events_is_told_so() -> None:
    class Refusing:
        def list(self, *_: object, **__: object) -> None:
            raise ApiError("you have no right to list events", status=403, of_rights=True)

    assert events_about(cast("Api", Refusing()), JOB) == ([], "you have no right to list events")
