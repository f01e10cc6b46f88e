"""The launcher's Kubernetes Jobs, on a real Kubernetes, in a namespace that takes only restricted pods."""

import functools
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.terminal import POD, SMALL, Terminal, own_namespace, restricted
from tests.cluster.support.waiting import until
from tests.cluster.testbed.cluster import Cluster
from tests.documents import documents, one_document


def test_a_job_is_followed_to_its_end_and_every_line_is_accounted_for(terminal: Terminal) -> None:
    result = terminal.submit("--npus", "2", "--mode", "performance", "--name", "first")
    assert result.returncode == 0, result.stderr
    assert " lines from 2 devices, 0 missing" in result.stdout
    assert "job first: Running" in result.stderr.splitlines()
    (pod,) = terminal.pods("first")
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"huawei.com/Ascend910": "2"}
    assert terminal.run("wait", "first").returncode == 0
    listed = one_document(terminal.run("list", "--json").stdout, "JobList")["items"]
    assert [(job["name"], job["status"]["phase"]) for job in listed] == [("first", "Succeeded")]
    raw = terminal.run("logs", "first", "--rank", "1", "--raw").stdout.splitlines()
    assert [line.partition("]")[0] for line in raw] == [f"[rank 1 cpu:1 #{place}" for place in range(1, len(raw) + 1)]
    assert len(raw) > 5
    stamped = terminal.run("logs", "first", "--tail", "1", "--timestamps").stdout
    assert stamped[:4].isdigit()
    assert "[node 0] ended" in stamped
    recent = terminal.run("logs", "first", "--since", "1h", "--json", "--device", "1", "--grep", "^step ")
    assert (recent.returncode, recent.stderr) == (0, "")
    steps = documents(recent.stdout)
    assert {(line["kind"], line["device"], line["rank"]) for line in steps} == {("LogLine", "cpu:1", 1)}
    assert len(steps) == sum("] step " in line for line in raw)
    last_second = terminal.run("logs", "first", "--since", "1", "--raw")
    assert (last_second.returncode, last_second.stdout, last_second.stderr) == (0, "", ""), (
        "lines outside the request do not count as missing"
    )
    assert one_document(terminal.run("status", "first", "--json").stdout, "Job")["status"]["result"]["mode"]
    assert one_document(terminal.run("delete", "first", "--json").stdout, "JobDeleted")["name"] == "first"
    assert terminal.run("status", "first").returncode == 4


def test_the_same_job_is_one_job_and_other_settings_cannot_take_its_name(terminal: Terminal) -> None:
    # The job runs until the test cancels it, on a busy machine too: it must not end or diverge before that.
    others = ("--npus", "1", "--mode", "full", "--epochs", "1000", "--detach")
    words = (*others, "--lr", "0.001")
    name = terminal.submit(*words).stdout.strip()
    repeated = terminal.submit(*words)
    assert (repeated.returncode, repeated.stdout.strip()) == (0, name)
    assert "is already running" in repeated.stderr
    dry_run = terminal.submit(*words, "--dry-run", "server")
    assert (dry_run.returncode, "is already running" in dry_run.stderr) == (0, True), dry_run.stderr
    for check_words in ((), ("--dry-run", "server")):
        conflicting = terminal.submit(*others, *check_words, "--name", name, "--lr", "0.1")
        assert conflicting.returncode == 6
        assert "lr is 0.001, not 0.1" in conflicting.stderr
    _check_figures_of_running_job(terminal, name)
    assert terminal.run("cancel", name).returncode == 0
    assert terminal.run("wait", name).returncode == 125
    ended = terminal.submit(*words)
    assert ended.returncode == 6
    assert "--again starts a new one" in ended.stderr
    conflicting = terminal.submit(*others, "--again", "--name", name, "--lr", "0.1")
    assert (conflicting.returncode, "lr is 0.001, not 0.1" in conflicting.stderr) == (6, True), conflicting.stderr
    for expected in ("job        ", "is already running"):
        new = terminal.submit(*words, "--again")
        assert (new.returncode, new.stdout.strip()) == (0, f"{name}-2")
        assert expected in new.stderr


def _check_figures_of_running_job(terminal: Terminal, name: str) -> None:
    def live_job() -> dict[str, Any]:
        (job,) = one_document(terminal.run("top", "--json").stdout, "LiveJobList")["items"]
        return dict(job)

    until(lambda: (live_job()["status"]["progress"] or {}).get("host_use_percent") is not None)
    job = live_job()
    assert (job["name"], job["status"]["phase"], [device["rank"] for device in job["devices"]]) == (
        name,
        "Running",
        [0],
    )
    assert job["devices"][0]["imagesPerS"] > 0
    summary, line, shown = terminal.run("top").stdout.splitlines()
    assert (summary, line.split()[:2]) == ("1 live, 0 ended", [name, "Running"])
    assert " left  epoch " in line
    assert shown.startswith("  rank 0 ")
    assert " images/s " in shown
    (listed,) = one_document(terminal.run("list", "--json").stdout, "JobList")["items"]
    assert listed["status"]["progress"]["left_s"] > 0


def test_a_deleted_pod_saves_and_its_successor_continues_bit_for_bit(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "12", "--checkpoint-every", "3", "--name", "moved")
    output = terminal.output("moved")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: (output / "checkpoints").is_dir() and any((output / "checkpoints").glob("step-*")))
        (pod,) = terminal.pods("moved")
        terminal.cluster.kubectl(
            "delete", "pod", pod["metadata"]["name"], "--namespace", terminal.namespace, "--wait=false"
        )
        follower_output, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, follower_output
    assert "received SIGTERM" in follower_output
    assert follower_output.count("job moved: Running") == 2, follower_output
    assert "resumed bit_exact=yes" in follower_output
    assert ", 0 missing" in follower_output
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [(record["epoch"], record["step"]) for record in records if "lr" in record]
    assert steps == [(epoch, step) for epoch in range(12) for step in range(4)]


def test_a_cancelled_job_saves_and_can_continue_even_after_a_refused_option(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "40", "--name", "stopped")
    output = terminal.output("stopped")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: (output / "metrics.jsonl").is_file() and (output / "metrics.jsonl").stat().st_size > 0)
        cancelled = terminal.run("cancel", "stopped")
        assert cancelled.returncode == 0, cancelled.stderr
        assert "stopped Cancelled" in cancelled.stdout
        follower_output, _ = follower.communicate(timeout=600)
    assert follower.returncode == 125, follower_output
    assert "continue" in follower_output
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    last_epoch = max(record["epoch"] for record in records if record["kind"] == "step")
    resume = ("submit", "--name", "stopped", "--resume", "auto")
    refused = terminal.run(*resume, "--seed", "5")
    assert refused.returncode == 1, refused.stderr
    assert "--seed 5: checkpoint step-" in refused.stderr
    assert "its settings do not count: --resume auto takes the settings of attempt 1" in refused.stderr.splitlines()[-1]
    shorter = terminal.run(*resume, "--epochs", str(last_epoch + 3))
    assert shorter.returncode == 0, shorter.stderr
    assert "attempt 3 continues attempt 1" in shorter.stderr
    assert "stopped, attempt 3" in shorter.stderr
    assert "goes on from" in shorter.stdout


def test_a_job_that_cannot_be_placed_gives_the_reason_and_ctrl_c_shows_how_to_reattach(terminal: Terminal) -> None:
    words = ("--npus", "1", "--resource", "huawei.com/Ascend950", "--name", "waits")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        assert follower.stdout is not None
        line = next(line for line in follower.stdout if "Insufficient" in line)
        assert line.startswith("job waits: Pending: 0/2 nodes are available: 2 Insufficient huawei.com/Ascend950.")
        follower.send_signal(signal.SIGINT)
        rest = follower.stdout.read()
    assert follower.returncode == 130
    assert "job waits goes on. Come back with `python -m launcher logs waits -f`" in rest
    timed_out = terminal.run("wait", "waits", "--timeout", "1")
    assert timed_out.returncode == 124
    assert terminal.run("delete", "waits").returncode == 6
    assert terminal.run("delete", "waits", "--force").returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "retried", "message"),
    [
        (
            ("--mode", "eval", "--weights", "/output/none.safetensors"),
            1,
            False,
            "/output/none.safetensors: no such file",
        ),
        (("--data-path", "/data/none"), 1, False, "no such folder"),
    ],
)
def test_a_job_that_fails_names_its_cause(
    terminal: Terminal, words: tuple[str, ...], code: int, retried: bool, message: str
) -> None:
    result = terminal.submit("--npus", "1", "--name", "fails", *words)
    assert result.returncode == code, result.stderr
    assert message in result.stderr.splitlines()[-1]
    assert "exit code 2" in result.stderr.splitlines()[-1]
    assert (len(terminal.pods("fails")) > 1) == retried


def test_a_diverged_run_is_not_retried(terminal: Terminal) -> None:
    result = terminal.submit_diverging("diverges")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "was not finite in 5 steps in a row" in result.stderr.splitlines()[-1]
    assert len(terminal.pods("diverges")) == 1


def test_a_suspended_job_is_followed_until_it_resumes_and_ends(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "10", "--name", "rests")
    output = terminal.output("rests")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: (output / "metrics.jsonl").is_file() and (output / "metrics.jsonl").stat().st_size > 0)
        for suspend in ("true", "false"):
            patch = f'{{"spec": {{"suspend": {suspend}}}}}'
            terminal.cluster.kubectl("patch", "job", "rests", "--namespace", terminal.namespace, "--patch", patch)
            if suspend == "true":
                until(lambda: not terminal.pods("rests"))
                assert "Suspended" in terminal.run("status", "rests").stdout
        follower_output, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, follower_output
    assert "job rests: Suspended: suspended" in follower_output
    assert ", 0 missing" in follower_output


@pytest.fixture(scope="module")
def empty(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Terminal]:
    """Return a terminal in one namespace, for all tests that create nothing."""
    with (
        own_namespace(cluster) as namespace,
        restricted(cluster, namespace, tmp_path_factory.mktemp("home"), digits, PNAS_BACKEND="batch") as terminal,
    ):
        yield terminal


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--npus", "3"), 2, "--npus 3: a pod has 1, 2, 4, 8 NPUs"),
        (("--npus", "16"), 2, "--npus 16: a pod has 1, 2, 4, 8 NPUs"),
        (("--nodes", "0"), 2, "--nodes 0"),
        (("--memory", "3Q"), 2, "--memory 3Q: is not a quantity"),
        (("--env", "A"), 2, "`A` is not NAME=VALUE"),
        (("--env", "API_TOKEN=x"), 2, "use --env-from-secret"),
        (("--env", "PNAS_SEED=x"), 2, "--seed x (from --env): is not a whole number"),
        (("--namespace", "nowhere"), 5, "namespace nowhere: there is no such namespace"),
        (("--context", "nope"), 2, "--context nope: not in kubeconfig"),
        (("--kubeconfig", "/nope"), 3, "/nope: no such file"),
        (("--overlay", "overlay.yaml"), 2, 'unknown field "spec.template.spec.imgePull"'),
        (("--image", "none"), 2, "--image is missing"),
        (("--data-path", "data"), 2, "give the absolute path"),
        (("--output", "/x"), 2, "below /output"),
        (("--name", "Upper"), 2, "--name Upper"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_created(
    empty: Terminal, words: tuple[str, str], code: int, message: str
) -> None:
    overlay = empty.home / "overlay.yaml"
    overlay.write_text("spec: {imgePull: 1}\n")
    options = dict(zip((*POD, *SMALL)[::2], (*POD, *SMALL)[1::2], strict=True)) | {"--env": "PNAS_DEVICE=cpu"}
    options |= {words[0]: words[1].replace("overlay.yaml", str(overlay))}
    result = empty.run("submit", *(word for option in options.items() for word in option))
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    objects = empty.cluster.kubectl("get", "jobs,configmaps,services", "--namespace", empty.namespace, "-o", "name")
    assert objects.split() == ["configmap/kube-root-ca.crt"]


def test_the_servers_warnings_are_shown(empty: Terminal) -> None:
    result = empty.submit("--npus", "1", "--node-selector", "beta.kubernetes.io/arch=amd64", "--dry-run", "server")
    assert result.returncode == 0, result.stderr
    assert "warning: spec.template.spec.nodeSelector[beta.kubernetes.io/arch]: deprecated" in result.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--image", "registry.example/none:1"), "ErrImageNeverPull: Container image"),
        (("--env-from-secret", "none"), 'CreateContainerConfigError: secret "none" not found'),
        (("--overlay", '{"spec": {"schedulerName": "nobody"}}'), "no scheduler named nobody has looked at it"),
    ],
)
def test_a_pending_job_names_what_its_pod_lacks(empty: Terminal, words: tuple[str, str], reason: str) -> None:
    overlay = empty.home / "overlay.yaml"
    overlay.write_text(words[1])
    option, value = words[0], str(overlay) if words[0] == "--overlay" else words[1]
    values = dict(zip(POD[::2], POD[1::2], strict=True)) | {"--env": "PNAS_DEVICE=cpu", option: value}
    options = [word for pair in values.items() for word in pair]
    with empty.start("submit", *options, *SMALL, "--npus", "1", "--name", "lacks") as follower:
        assert follower.stdout is not None
        line = next(line for line in follower.stdout if line.startswith("job lacks: Pending: "))
        follower.kill()
    assert reason in line
    assert empty.run("delete", "lacks", "--force").returncode == 0


def _with_server(change: dict[str, str], config: Any) -> None:
    config["clusters"][0]["cluster"].update(change)


def test_a_cluster_that_does_not_answer_is_named(terminal: Terminal) -> None:
    for change, message in (
        ({"server": "https://127.0.0.1:1"}, "the connection was refused; is the cluster up?"),
        ({"server": "https://nowhere.invalid"}, "its name is not known here"),
        ({"tls-server-name": "other.example"}, "its certificate is for another name"),
    ):
        broken = terminal.kubeconfig_with("broken", functools.partial(_with_server, change))
        result = terminal.run("list", "--kubeconfig", str(broken), "--backend", "batch")
        assert (result.returncode, len(result.stderr.splitlines())) == (3, 1), result.stderr
        assert message in result.stderr


def test_a_user_without_rights_learns_which_are_missing(terminal: Terminal) -> None:
    kubectl = terminal.cluster.kubectl
    kubectl("create", "serviceaccount", "guest", "--namespace", terminal.namespace)
    token = kubectl("create", "token", "guest", "--namespace", terminal.namespace).strip()
    guest = terminal.kubeconfig_with("guest", lambda config: config["users"][0].update(user={"token": token}))
    result = Terminal(terminal.cluster, terminal.namespace, terminal.home, guest, terminal.variables).submit(
        "--npus", "1"
    )
    assert result.returncode == 3
    assert "you have no right to get jobs.batch" in result.stderr
    assert f"namespace {terminal.namespace}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_manifests_are_the_same_bytes_each_time_and_kubectl_accepts_them(terminal: Terminal) -> None:
    words = (*POD, *SMALL, "--npus", "8", "--nodes", "2", "--mode", "full")
    first, second = (terminal.run("render", *words).stdout for _ in range(2))
    assert first == second
    result = subprocess.run(
        terminal.cluster.command("create", "--dry-run=server", "--filename", "-"),
        input=first,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("created (server dry run)") == 2


def test_two_nodes_find_each_other_by_the_headless_service_which_goes_with_the_job(terminal: Terminal) -> None:
    """test_volcano_jobs.py tests a gang of 16 devices."""
    result = terminal.submit("--npus", "1", "--nodes", "2", "--mode", "performance", "--name", "wide")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " lines from 2 devices, 0 missing" in result.stdout
    assert {pod["spec"]["nodeName"] for pod in terminal.pods("wide")} == {"node1", "node2"}
    objects = ("get", "services", "--namespace", terminal.namespace, "-o", "name")
    assert terminal.cluster.kubectl(*objects).split() == ["service/wide"]
    assert terminal.run("delete", "wide").returncode == 0
    until(lambda: not terminal.cluster.kubectl(*objects).split())
