"""The scenarios that were recorded on a real Volcano, played again: the same Jobs, and the same done to them."""

import time
from collections.abc import Callable, Mapping

from tests.cluster.support.volcano_timelines import LEAST_S, Stage, sample
from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano.client import JOBS, PODS, Json, path


def play(stages: Mapping[str, Stage], scenarios: Mapping[str, Callable[[Stage], None]]) -> dict[str, str]:
    """Play them one after the other; what has gone wrong, by scenario."""
    played = {name: _played(scenario, stages[name]) for name, scenario in scenarios.items()}
    return {name: wrong for name, wrong in played.items() if wrong}


def _played(scenario: Callable[[Stage], None], stage: Stage) -> str:
    try:
        scenario(stage)
    except (TimeoutError, ApiError) as error:
        return str(error)
    return ""


def job_of(name: str, job: str | None = None) -> Json:
    """A recorded Job, by its sample."""
    return next(one for one in sample(name)["jobs"] if job in {None, one["metadata"]["name"]})


def _to_the_end(name: str, end: str, *jobs: str, at_most_s: int | None = None) -> Callable[[Stage], None]:
    """Nothing is done to the Jobs of a sample: they are created, one after the other, and end by themselves."""

    def scenario(stage: Stage) -> None:
        for job in jobs:
            stage.create(job_of(name, job), at_most_s=at_most_s)
            stage.phase(job, "Running")
        for job in jobs:
            stage.phase(job, end)

    return scenario


def _two(name: str) -> Callable[[Stage], None]:
    def scenario(stage: Stage) -> None:
        stage.create(job_of(name, "one"), at_most_s=6)
        stage.phase("one", "Running")
        stage.create(job_of(name, "two"), at_most_s=LEAST_S)
        stage.phase("two", "Running", "Completed")

    return scenario


def _waits_in_vain(name: str, reason: str) -> Callable[[Stage], None]:
    """It is told that it cannot be placed, some seconds pass, and it is deleted."""

    def scenario(stage: Stage) -> None:
        job = job_of(name)
        stage.create(job)
        stage.warned(reason)
        time.sleep(2.5)
        stage.delete(JOBS, job["metadata"]["name"])
        stage.phase(job["metadata"]["name"], "gone")
        stage.no_pods()

    return scenario


def _gang(stage: Stage) -> None:
    stage.create(job_of("gang-pending"))
    stage.until(lambda: [event[3] for event in stage.timeline.events].count("FailedScheduling") == 2, "two events")
    stage.command("gang", "AbortJob")
    stage.phase("gang", "Aborting", "Aborted")
    stage.command("gang", "ResumeJob")
    stage.phase("gang", "Aborted", "Restarting", "Pending")
    stage.until(lambda: stage.seen(JOBS, "gang").get("status", {}).get("pending") == 2, "pods are made anew")
    time.sleep(2.5)
    stage.delete(JOBS, "gang")
    stage.phase("gang", "gone")
    stage.no_pods()


def _restartpod(stage: Stage) -> None:
    # One that has ended before the Job fails would be kept.
    stage.create(job_of("restartpod"), others_s=900)
    stage.phase("rp", "Restarting", "Failed")
    stage.no_pods()


def _evict(stage: Stage) -> None:
    stage.create(job_of("evicted-restarted"))
    stage.running("ev", 2)
    stage.evict("ev-worker-1")
    stage.phase("ev", "Restarting", "Pending", "Running")
    stage.running("ev", 2)
    stage.delete(JOBS, "ev")
    stage.no_pods()


def _delete_pod(stage: Stage) -> None:
    stage.create(job_of("pod-deleted-no-policy"))
    stage.running("ev", 2)
    stage.delete(PODS, "ev-worker-1")
    stage.phase("ev", "Running", "Pending", "Running")
    stage.running("ev", 2)
    stage.delete(JOBS, "ev")
    stage.no_pods()


def _abort(stage: Stage) -> None:
    stage.create(job_of("aborted-by-command"))
    stage.phase("ab", "Running")
    stage.ready("ab")
    stage.command("ab", "AbortJob")
    stage.phase("ab", "Aborted")
    stage.no_pods()


def _commands(stage: Stage) -> None:
    stage.create(job_of("restart-by-command"))
    stage.phase("c1", "Running")
    stage.command("c1", "RestartJob")
    stage.phase("c1", "Restarting", "Pending", "Running")
    stage.command("c1", "TerminateJob")
    stage.phase("c1", "Terminated")
    stage.no_pods()
    stage.command("c1", "ResumeJob")


def _exit_codes(stage: Stage) -> None:
    for job, end in (("ex", "Terminated"), ("ex2", "Failed"), ("ex3", "Aborted")):
        stage.create(job_of("any-event-abort", job))
        stage.phase(job, end)


def _partial(stage: Stage) -> None:
    stage.create(job_of("partial-minavailable-1-of-3"))
    stage.running("pt", 2)
    time.sleep(2.5)
    stage.delete(JOBS, "pt")
    stage.no_pods()


def _like_c1(**env: str) -> Json:
    """A Job of one pod, as the scenarios had whose Jobs were not sampled."""
    job = job_of("restart-by-command")
    (container,) = job["spec"]["tasks"][0]["template"]["spec"]["containers"]
    container["env"] = [{"name": name, "value": value} for name, value in env.items()]
    return job


def _deleted(propagation: str) -> Callable[[Stage], None]:
    def scenario(stage: Stage) -> None:
        name = "fg" if propagation == "Foreground" else "dl"
        stage.create(_like_c1(SLEEP="600"), name=name)
        stage.phase(name, "Running")
        stage.ready(name)
        stage.delete(JOBS, name, propagation=propagation)
        stage.phase(name, "gone")
        stage.no_pods()

    return scenario


def _image_absent(stage: Stage) -> None:
    _waits_in_vain("nodeselector-mismatch", "FailedScheduling")(stage)
    job = _like_c1(SLEEP="600")
    job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["image"] = "localhost/absent:1"
    stage.create(job, name="img")
    stage.ready("img")
    stage.delete(JOBS, "img")
    stage.phase("img", "gone")
    stage.no_pods()


def _same_name(stage: Stage) -> None:
    stage.create(_like_c1(SLEEP="600"), name="sm")
    stage.phase("sm", "Running")
    stage.ready("sm")
    stage.delete(JOBS, "sm")
    # As it was recorded: the second Job finds the first one's pod going, and not still running, which it would count.
    stage.until(lambda: stage.timeline.lives()["sm-worker-0"][-1][-1] in {"going", "gone"}, "its pod goes")
    stage.create(_like_c1(SLEEP="3"), name="sm")
    stage.phase("sm", "Running", "Completed")


def _names(stage: Stage) -> None:
    names = ("1abc", "a.b", "y" * 50)
    for name in names:
        stage.create(job_of("names", name))
    for name in (names[0], names[2]):
        stage.phase(name, "Running")
        stage.ready(name)
    stage.warned("PluginError")
    for name in names:
        stage.delete(JOBS, name)
        stage.phase(name, "gone")
    stage.no_pods()


def _queue(stage: Stage) -> None:
    """A queue that is too small for a Job; then a Job that grows, and one whose pods know each other's keys."""
    _waits_in_vain("queue-capability-too-small", "Unschedulable")(stage)
    stage.create(_like_c1(SLEEP="600"), name="up")
    stage.phase("up", "Running")
    stage.ready("up")
    task = stage.seen(JOBS, "up")["spec"]["tasks"][0]
    stage.client.merge(path(JOBS, stage.namespace, "up"), {"spec": {"tasks": [task | {"replicas": 2}]}})
    stage.running("up", 2)
    stage.delete(JOBS, "up")
    stage.create(job_of("ssh-plugin", "ssh"))
    stage.phase("ssh", "Running")
    stage.ready("ssh")
    stage.delete(JOBS, "ssh")
    stage.no_pods()


# Each of these uses all eight NPUs of the only node that has any, so they are played one after the other.
WITH_NPUS: dict[str, Callable[[Stage], None]] = {
    "run2": _to_the_end("completed", "Completed", "run", at_most_s=LEAST_S),
    "abort": _abort,
    "two": _two("second-job-waits"),
    "two2": _two("second-job-waits-requests-set"),
    "part": _partial,
    "gang": _gang,
    "gangreq": _waits_in_vain("gang-pending-requests", "Unschedulable"),
    "big": _waits_in_vain("one-pod-asks-16-of-8", "FailedScheduling"),
}
WITHOUT: dict[str, Callable[[Stage], None]] = {
    "restart": _to_the_end("failed-after-maxretry", "Failed", "rst"),
    "rpod": _restartpod,
    "evict": _evict,
    "evict2": _delete_pod,
    "cmd": _commands,
    "term": _to_the_end("terminated-on-podfailed", "Terminated", "tm"),
    "cplt": _to_the_end("completejob-on-taskcompleted", "Completed", "cp"),
    "exit": _exit_codes,
    "nopol": _to_the_end("pod-failed-no-policy", "Failed", "np"),
    "ttl": _to_the_end("ttl-completed-before", "gone", "tt"),
    "rank": _to_the_end("hcclrank-args", "Completed", "rk"),
    "del": _deleted("Background"),
    "fg": _deleted("Foreground"),
    "same": _same_name,
    "name": _names,
    "node": _image_absent,
    "queue": _queue,
}
