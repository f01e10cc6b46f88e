"""The scenarios that were recorded on a real Volcano, run again: the same Jobs, and the same changes to them."""

import time
from collections.abc import Callable, Mapping

from tests.cluster.support.volcano_timelines import QUIET_S, SHORTEST_RUN_S, Scenario, sample
from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano.client import JOBS, PODS, Json, path


def run_scenarios(
    scenarios: Mapping[str, Scenario], steps_by_name: Mapping[str, Callable[[Scenario], None]]
) -> dict[str, str]:
    """Run scenarios one after the other; return the errors by scenario."""
    errors = {name: _error_of(steps, scenarios[name]) for name, steps in steps_by_name.items()}
    return {name: wrong for name, wrong in errors.items() if wrong}


def _error_of(steps: Callable[[Scenario], None], scenario: Scenario) -> str:
    try:
        steps(scenario)
    except (TimeoutError, ApiError) as error:
        return str(error)
    return ""


def job_of(name: str, job: str | None = None) -> Json:
    """Return a recorded Job, by its sample."""
    return next(candidate for candidate in sample(name)["jobs"] if job in {None, candidate["metadata"]["name"]})


def _runs_to_its_end(
    name: str, last_phase: str, *jobs: str, at_most_s: int | None = None
) -> Callable[[Scenario], None]:
    """Return steps that create the Jobs of a sample one after the other and let them end by themselves."""

    def steps(scenario: Scenario) -> None:
        for job in jobs:
            scenario.create(job_of(name, job), at_most_s=at_most_s)
            scenario.wait_for_phases(job, "Running")
        for job in jobs:
            scenario.wait_for_phases(job, last_phase)

    return steps


def _second_waits_for_first(name: str) -> Callable[[Scenario], None]:
    def steps(scenario: Scenario) -> None:
        scenario.create(job_of(name, "one"), at_most_s=6)
        scenario.wait_for_phases("one", "Running")
        scenario.create(job_of(name, "two"), at_most_s=SHORTEST_RUN_S)
        scenario.wait_for_phases("two", "Running", "Completed")

    return steps


def _cannot_be_placed(name: str, reason: str) -> Callable[[Scenario], None]:
    """Return steps for a Job that cannot be placed: wait for the warning and some seconds more, and delete the Job."""

    def steps(scenario: Scenario) -> None:
        job = job_of(name)
        scenario.create(job)
        scenario.wait_for_warning(reason)
        time.sleep(QUIET_S)
        scenario.delete(JOBS, job["metadata"]["name"])
        scenario.wait_for_phases(job["metadata"]["name"], "gone")
        scenario.wait_for_no_pods()

    return steps


def _gang(scenario: Scenario) -> None:
    scenario.create(job_of("gang-pending"))
    scenario.wait_until(
        lambda: [event[3] for event in scenario.timeline.events].count("FailedScheduling") == 2, "two events"
    )
    scenario.command("gang", "AbortJob")
    scenario.wait_for_phases("gang", "Aborting", "Aborted")
    scenario.command("gang", "ResumeJob")
    scenario.wait_for_phases("gang", "Aborted", "Restarting", "Pending")
    scenario.wait_until(
        lambda: scenario.last_seen(JOBS, "gang").get("status", {}).get("pending") == 2, "the pods are created again"
    )
    time.sleep(QUIET_S)
    scenario.delete(JOBS, "gang")
    scenario.wait_for_phases("gang", "gone")
    scenario.wait_for_no_pods()


def _restartpod(scenario: Scenario) -> None:
    # A pod that ends before the Job fails would be kept.
    scenario.create(job_of("restartpod"), others_s=900)
    scenario.wait_for_phases("rp", "Restarting", "Failed")
    scenario.wait_for_no_pods()


def _loses_a_pod(name: str, lose: Callable[[Scenario, str], None], *phases: str) -> Callable[[Scenario], None]:
    """Return steps for a Job of two pods: remove its second pod by `lose`, and wait for these phases and a new pod."""

    def steps(scenario: Scenario) -> None:
        scenario.create(job_of(name))
        scenario.wait_for_running("ev", 2)
        lose(scenario, "ev-worker-1")
        scenario.wait_for_phases("ev", *phases)
        scenario.wait_for_running("ev", 2)
        scenario.delete(JOBS, "ev")
        scenario.wait_for_no_pods()

    return steps


def _delete_pod(scenario: Scenario, name: str) -> None:
    scenario.delete(PODS, name)


def _abort(scenario: Scenario) -> None:
    scenario.create(job_of("aborted-by-command"))
    scenario.wait_for_phases("ab", "Running")
    scenario.wait_for_ready("ab")
    scenario.command("ab", "AbortJob")
    scenario.wait_for_phases("ab", "Aborted")
    scenario.wait_for_no_pods()


def _commands(scenario: Scenario) -> None:
    scenario.create(job_of("restart-by-command"))
    scenario.wait_for_phases("c1", "Running")
    scenario.command("c1", "RestartJob")
    scenario.wait_for_phases("c1", "Restarting", "Pending", "Running")
    scenario.command("c1", "TerminateJob")
    scenario.wait_for_phases("c1", "Terminated")
    scenario.wait_for_no_pods()
    scenario.command("c1", "ResumeJob")


def _exit_codes(scenario: Scenario) -> None:
    for job, end in (("ex", "Terminated"), ("ex2", "Failed"), ("ex3", "Aborted")):
        scenario.create(job_of("any-event-abort", job))
        scenario.wait_for_phases(job, end)


def _partial(scenario: Scenario) -> None:
    scenario.create(job_of("partial-minavailable-1-of-3"))
    scenario.wait_for_running("pt", 2)
    time.sleep(QUIET_S)
    scenario.delete(JOBS, "pt")
    scenario.wait_for_no_pods()


def _one_pod_job(**env: str) -> Json:
    """Return a Job of one pod, like the recorded Jobs that have no sample."""
    job = job_of("restart-by-command")
    (container,) = job["spec"]["tasks"][0]["template"]["spec"]["containers"]
    container["env"] = [{"name": name, "value": value} for name, value in env.items()]
    return job


def _deleted(propagation: str) -> Callable[[Scenario], None]:
    def steps(scenario: Scenario) -> None:
        name = "fg" if propagation == "Foreground" else "dl"
        scenario.create(_one_pod_job(SLEEP="600"), name=name)
        scenario.wait_for_phases(name, "Running")
        scenario.wait_for_ready(name)
        scenario.delete(JOBS, name, propagation=propagation)
        scenario.wait_for_phases(name, "gone")
        scenario.wait_for_no_pods()

    return steps


def _image_absent(scenario: Scenario) -> None:
    _cannot_be_placed("nodeselector-mismatch", "FailedScheduling")(scenario)
    job = _one_pod_job(SLEEP="600")
    job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["image"] = "localhost/absent:1"
    scenario.create(job, name="img")
    scenario.wait_for_ready("img")
    scenario.delete(JOBS, "img")
    scenario.wait_for_phases("img", "gone")
    scenario.wait_for_no_pods()


def _same_name(scenario: Scenario) -> None:
    scenario.create(_one_pod_job(SLEEP="600"), name="sm")
    scenario.wait_for_phases("sm", "Running")
    scenario.wait_for_ready("sm")
    scenario.delete(JOBS, "sm")
    # As recorded: the second Job finds the first Job's pod being deleted. If the pod still ran, the second Job would
    # count it.
    scenario.wait_until(lambda: scenario.timeline.lives()["sm-worker-0"][-1][-1] in {"going", "gone"}, "its pod goes")
    scenario.create(_one_pod_job(SLEEP="3"), name="sm")
    scenario.wait_for_phases("sm", "Running", "Completed")


def _names(scenario: Scenario) -> None:
    names = ("1abc", "a.b", "y" * 50)
    for name in names:
        scenario.create(job_of("names", name))
    for name in (names[0], names[2]):
        scenario.wait_for_phases(name, "Running")
        scenario.wait_for_ready(name)
    scenario.wait_for_warning("PluginError")
    for name in names:
        scenario.delete(JOBS, name)
        scenario.wait_for_phases(name, "gone")
    scenario.wait_for_no_pods()


def _queue(scenario: Scenario) -> None:
    """Run a Job that is too large for its queue, then a Job that grows, and a Job whose pods know each other's keys."""
    _cannot_be_placed("queue-capability-too-small", "Unschedulable")(scenario)
    scenario.create(_one_pod_job(SLEEP="600"), name="up")
    scenario.wait_for_phases("up", "Running")
    scenario.wait_for_ready("up")
    task = scenario.last_seen(JOBS, "up")["spec"]["tasks"][0]
    scenario.client.merge(path(JOBS, scenario.namespace, "up"), {"spec": {"tasks": [task | {"replicas": 2}]}})
    scenario.wait_for_running("up", 2)
    scenario.delete(JOBS, "up")
    scenario.create(job_of("ssh-plugin", "ssh"))
    scenario.wait_for_phases("ssh", "Running")
    scenario.wait_for_ready("ssh")
    scenario.delete(JOBS, "ssh")
    scenario.wait_for_no_pods()


# Each of these scenarios uses all eight NPUs of the only node that has NPUs, so they run one after the other.
WITH_NPUS: dict[str, Callable[[Scenario], None]] = {
    "run2": _runs_to_its_end("completed", "Completed", "run", at_most_s=SHORTEST_RUN_S),
    "abort": _abort,
    "two": _second_waits_for_first("second-job-waits"),
    "two2": _second_waits_for_first("second-job-waits-requests-set"),
    "part": _partial,
    "gang": _gang,
    "gangreq": _cannot_be_placed("gang-pending-requests", "Unschedulable"),
    "big": _cannot_be_placed("one-pod-asks-16-of-8", "FailedScheduling"),
}
WITHOUT_NPUS: dict[str, Callable[[Scenario], None]] = {
    "restart": _runs_to_its_end("failed-after-maxretry", "Failed", "rst"),
    "rpod": _restartpod,
    "evict": _loses_a_pod("evicted-restarted", Scenario.evict, "Restarting", "Pending", "Running"),
    "evict2": _loses_a_pod("pod-deleted-no-policy", _delete_pod, "Running", "Pending", "Running"),
    "cmd": _commands,
    "term": _runs_to_its_end("terminated-on-podfailed", "Terminated", "tm"),
    "cplt": _runs_to_its_end("completejob-on-taskcompleted", "Completed", "cp"),
    "exit": _exit_codes,
    "nopol": _runs_to_its_end("pod-failed-no-policy", "Failed", "np"),
    "ttl": _runs_to_its_end("ttl-completed-before", "gone", "tt"),
    "rank": _runs_to_its_end("hcclrank-args", "Completed", "rk"),
    "del": _deleted("Background"),
    "fg": _deleted("Foreground"),
    "same": _same_name,
    "name": _names,
    "node": _image_absent,
    "queue": _queue,
}
