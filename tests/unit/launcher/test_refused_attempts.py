"""On a cluster, the next attempt does not take over the settings of an attempt that the trainer refused."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from launcher.cluster import submit
from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.saved_attempt import config_map_name
from launcher.cluster.submitter import ClusterSubmitter
from launcher.commands.prepare import resolve_job
from launcher.errors import ApiError, LauncherError
from launcher.jobs import KIND_NAMES, JobRef, Submitted
from launcher.kinds import kind_named
from launcher.kinds.labels import EARLIER_ANNOTATION
from launcher.kinds.objects import annotations
from launcher.kube.api import Api, Json
from launcher.kube.resources import CONFIG_MAPS, PODS, Resource
from launcher.settings.layers import Settings

FIRST = {"image": "r/pnas:1", "npus": 1, "name": "mine", "lr": 0.1, "env": ("KEEP=this",)}
NEXT = {"name": "mine", "resume": "auto"}
REFUSED = "error: --seed 5: checkpoint step-000000004 was made with 0"
STEP = "[rank 0 npu:0 #9] step epoch=0 step=4 loss=2.3"
DONE = "[rank 0 npu:0 #9] result mode=eval top1=98.6"


class Server:
    """An API server that holds objects; the pods of its job end as the test says."""

    origin, namespace = "here", "training"

    def __init__(self) -> None:
        self.objects: dict[tuple[Resource, str], Json] = {}
        self.pods: list[Json] = []
        self.log = ""

    def find(self, resource: Resource, name: str) -> Json | None:
        return self.objects.get((resource, name))

    def list(self, resource: Resource, **_: str) -> tuple[list[Json], str]:
        return (self.pods if resource is PODS else []), "1"

    def read(self, _path: str, _query: Mapping[str, str], *, action: str) -> bytes:
        assert action
        return f"{self.log}\n".encode()

    def create(self, resource: Resource, body: Json, **_: object) -> Json:
        self.objects[resource, body["metadata"]["name"]] = body
        body["metadata"]["uid"] = f"{len(self.objects)}"
        return body

    def delete(self, resource: Resource, name: str, **_: str) -> None:
        del self.objects[resource, name]
        if resource is not CONFIG_MAPS:
            self.pods = []

    def patch(self, resource: Resource, name: str, body: Json) -> None:
        item = self.objects[resource, name]
        item.update(body | {"metadata": item["metadata"] | body.get("metadata", {})})


class Bench:
    """One kind of job on such a server."""

    def __init__(self, kind: str) -> None:
        self.server = Server()
        self.jobs = ClusterJobs(kind_named(kind), cast("Api", self.server))

    def resolve(self, flags: dict[str, Any]) -> tuple[Settings, ClusterSubmitter]:
        """Resolve the settings as the command does."""
        submitter = ClusterSubmitter(self.jobs)
        return resolve_job(flags, None, lambda _: (submitter, ""))[0], submitter

    def submit(self, flags: dict[str, Any]) -> Submitted:
        settings, submitter = self.resolve(flags)
        return submit.submit_job(self.jobs, submitter.build(settings, now=cast("Any", None)), sibling_s=0)

    def end(self, code: int, log: str, retries: int = 0) -> None:
        """Let the job fail with its only pod."""
        at = "2026-11-26T08:01:00Z"
        failed = {"type": "Failed", "status": "True", "reason": "r", "lastTransitionTime": at}
        of_batch = {"conditions": [failed], "failed": 1 + retries}
        of_volcano = {"state": {"phase": "Terminated"}, "retryCount": retries}
        status = {"batch": of_batch, "volcano": of_volcano}[self.jobs.name]
        self.job["status"] = status
        state = {"terminated": {"exitCode": code, "finishedAt": at}}
        containers = [{"name": "trainer", "state": state}]
        self.server.pods = [
            {"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Failed", "containerStatuses": containers}}
        ]
        self.server.log = log

    @property
    def job(self) -> Json:
        return self.jobs.job("mine")

    @property
    def reason(self) -> str:
        return self.jobs.get(JobRef(self.jobs.name, "mine")).reason


@pytest.fixture(params=KIND_NAMES)
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(submit, "judge", lambda *_: [])
    monkeypatch.setattr("time.sleep", lambda _: None)
    return Bench(request.param)


Attempt = tuple[dict[str, Any], Callable[[Bench], None]]


def ended(code: int, log: str = "", retries: int = 0, **flags: Any) -> Attempt:
    return flags, lambda bench: bench.end(code, log, retries)


TRAINED = ended(1, STEP)


@pytest.mark.parametrize(
    ("attempts", "origin", "seed"),
    [
        ((TRAINED, ended(2, REFUSED, seed=5)), "attempt 1", 0),
        ((TRAINED, ended(2, REFUSED, seed=5), ended(2, REFUSED, seed=6)), "attempt 1", 0),
        ((TRAINED, ended(2, REFUSED, seed=5), TRAINED), "attempt 3", 0),
        ((TRAINED, ended(2, REFUSED, seed=5), ended(1, STEP, seed=6), ended(2, seed=7)), "attempt 3", 6),
        ((TRAINED, ended(6, "error: /output/mine: holds another run", seed=5)), "attempt 1", 0),
        # It has trained, and another process has then taken its folder.
        ((TRAINED, ended(6, STEP, seed=5)), "attempt 2", 5),
        ((TRAINED, ended(2, DONE, seed=5)), "attempt 2", 5),
        # The first try may have trained: its pod is gone.
        ((TRAINED, ended(2, REFUSED, retries=1, seed=5)), "attempt 2", 5),
        ((TRAINED, ended(137, seed=5)), "attempt 2", 5),
        # Without an earlier attempt, the settings that the user did not correct have no other source.
        ((ended(2, REFUSED, seed=5),), "attempt 1", 5),
        ((ended(2, REFUSED, seed=5), ended(2, REFUSED, seed=6)), "attempt 1", 5),
    ],
)
def test_the_next_attempt_continues_the_last_one_that_was_not_refused(
    bench: Bench, attempts: tuple[Attempt, ...], origin: str, seed: int
) -> None:
    for number, (flags, end) in enumerate(attempts, 1):
        submission = bench.submit({**(FIRST if number == 1 else NEXT), **flags})
        assert submission.attempt == number
        end(bench)
    settings, _ = bench.resolve(NEXT)
    assert (settings.origins["lr"], settings.train.lr, settings.train.seed) == (origin, 0.1, seed)
    assert settings.options.env == ("KEEP=this",)
    assert bench.resolve({**NEXT, "seed": 9})[0].train.seed == 9, "an option that is given again wins"
    latest = len(attempts)
    notes = bench.submit(NEXT).notes
    refused = (
        f"the trainer refused attempt {latest}, whose settings do not count: attempt {latest + 1} continues {origin}"
    )
    assert (refused in notes) == (origin != f"attempt {latest}")


def test_the_message_of_a_refused_attempt_says_what_to_do(bench: Bench) -> None:
    bench.submit({**FIRST, "seed": 5})
    bench.end(2, REFUSED)
    cause = f"{REFUSED.removeprefix('error: ')} (pod p: exit code 2); "
    correction = "to correct an option, give it again with --resume auto, which keeps the others"
    assert bench.reason == cause + correction
    bench.submit({**NEXT, "seed": 0})
    bench.end(1, STEP)
    assert bench.reason == "pod p: exit code 1"
    bench.submit({**NEXT, "seed": 5})
    bench.end(2, REFUSED)
    assert bench.reason == f"{cause}its settings do not count: --resume auto takes the settings of attempt 2"


@pytest.fixture
def refused(bench: Bench) -> Bench:
    """Return a bench with two attempts of a job: one that trained, and one that was refused."""
    bench.submit(FIRST)
    bench.end(1, STEP)
    bench.submit({**NEXT, "seed": 5})
    bench.end(2, REFUSED)
    return bench


@pytest.mark.parametrize("damaged", ["{", '{"attempt": "x"}', '{"attempt": 1, "spec": {"train": 0}}', "[]"])
def test_a_damaged_record_leaves_the_attempts_own_settings(refused: Bench, damaged: str) -> None:
    refused.job["metadata"]["annotations"][EARLIER_ANNOTATION] = damaged
    assert refused.resolve(NEXT)[0].origins["seed"] == "attempt 2"


def test_an_attempt_that_cannot_be_created_loses_no_settings(refused: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, create, failure = refused, refused.server.create, ApiError("etcd is full", status=507)

    def failing(resource: Resource, body: Json, **options: object) -> Json:
        if resource is bench.jobs.kind.resource:
            raise failure
        return create(resource, body, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bench.server, "create", failing)
        with pytest.raises(LauncherError, match="are kept in configmap"):
            bench.submit(NEXT)
    settings, _ = bench.resolve(NEXT)
    assert (settings.origins["lr"], settings.train.seed) == ("attempt 1", 0)
    assert bench.submit(NEXT).attempt == 3
    assert bench.server.find(CONFIG_MAPS, config_map_name(bench.jobs.name, "mine")) is None


def test_a_first_attempt_continues_no_other_one(bench: Bench) -> None:
    bench.submit({**FIRST, "resume": "auto"})
    assert EARLIER_ANNOTATION not in annotations(bench.job)
