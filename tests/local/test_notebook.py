"""The launcher of notebooks and programs: the same jobs as the command line's, with errors of one line."""

import sys
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import launcher
from launcher import Launcher
from launcher.errors import ConflictError, LauncherError, NotFoundError, RequestError, WaitTimeoutError
from launcher.jobs import Phase
from tests.local.conftest import SMALL
from tests.local.job_runner import JobRunner
from tests.run_folders import write_run
from trainer.shared.errors import UsageError

HERE = Launcher("local")


@pytest.fixture
def jobs(runner: JobRunner, monkeypatch: pytest.MonkeyPatch) -> JobRunner:
    """Return a runner of jobs whose folder the API uses too."""
    monkeypatch.setenv("XDG_STATE_HOME", runner.environ["XDG_STATE_HOME"])
    return runner


def test_a_training_is_started_and_followed(jobs: JobRunner, few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(jobs.home)
    small: dict[str, Any] = {flag.removeprefix("--").replace("-", "_"): value for flag, value in SMALL.items()}
    job = HERE.submit(mode="performance", data_path=few_digits, steps=2, npus=1, name="speed", **small)
    lines = list(job.log(follow=True))
    assert [line for line in lines if line.startswith("[rank 0 cpu:0] result mode=performance")]
    assert not [line for line in lines if line.startswith("---")]
    state = job.wait()
    assert (state.phase, state.resumable) == (Phase.SUCCEEDED, False)
    result = job.progress().result
    assert result is not None
    assert [found.name for found in HERE.jobs()] == [HERE.job("speed").name] == [job.name]
    job.delete()
    assert HERE.jobs() == []


def test_a_run_is_reported_copied_and_packed(jobs: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(jobs.home)
    jobs.start("say(0, 'a')")
    output = write_run(jobs.home / "out" / "job")
    job = HERE.job("job")
    job.wait()
    page = job.report()
    assert (page, "<figcaption>Loss" in page.read_text()) == (Path("report-job.html"), True)
    assert "What differs" in job.report(job, to="both.html").read_text()
    copied = job.fetch()
    assert (sorted(copied.files), copied.problems) == (["config.yaml", "metrics.jsonl", "provenance.json"], [])
    assert Path("job/metrics.jsonl").read_bytes() == (output / "metrics.jsonl").read_bytes()
    assert job.fetch().files == [], "nothing is new"
    with tarfile.open(job.bundle()) as archive:
        assert {"bundle-job/run/metrics.jsonl", "bundle-job/console.log"} <= {*archive.getnames()}
    for again in (job.bundle, lambda: job.report(to="bundle-job.tar.gz"), lambda: job.fetch(output)):
        with pytest.raises(ConflictError):
            again()


def test_a_job_is_waited_for_and_cancelled(jobs: JobRunner) -> None:
    jobs.start("say(0, 'a\\x1b[31m')\nsay(0, 'b', skip=2)\nwait_for_file('never')")
    job = HERE.job("job")
    with pytest.raises(WaitTimeoutError, match=r"job job is still \w+ after 0.0 s; it goes on"):
        job.wait(timeout_s=0)
    shown = ["[rank 0 cpu:0] a\\x1b[31m", "--- lines 2-3 of rank 0 cpu:0 are missing ---", "[rank 0 cpu:0] b"]
    assert list(islice(job.log(follow=True), 3)) == shown
    assert job.cancel().phase in (Phase.CANCELLED, Phase.RESUMABLE)
    assert list(job.log()) == shown
    assert list(job.explain().causes) == [], "a stopped job has not failed"
    with pytest.raises(ConflictError, match=r"job job has ended .*: only a job that trains can be profiled"):
        job.profile(rank=1)


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"npu": 8}, UsageError, "unknown setting `npu`.*; did you mean npus"),
        ({"npus": 0}, UsageError, "--npus 0"),
        ({"npus": [1]}, UsageError, "^--npus: is a list; give one value"),
        ({"mode": "all"}, UsageError, "--mode all"),
        ({"profile": "none.yaml"}, UsageError, "none.yaml"),
        ({"resume": "auto", "name": "gone", "data_path": "/gone"}, LauncherError, "/gone"),
        ({"queue": "a"}, RequestError, "--queue"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_line(
    jobs: JobRunner, settings: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text) as refused:
        HERE.submit(**settings)
    assert "\n" not in str(refused.value)


def test_a_job_that_is_not_there(jobs: JobRunner) -> None:
    with pytest.raises(NotFoundError, match="there is no job `gone` on this machine"):
        HERE.job("gone")
    with pytest.raises(RequestError, match=r"^backend slurm: no such backend; there are"):
        Launcher("slurm").jobs()  # type: ignore[arg-type]  # a program without types can ask for it


def test_the_package_itself_loads_the_launcher_late() -> None:
    with pytest.raises(AttributeError, match="has no `Lancher`"):
        launcher.Lancher  # noqa: B018  # reading it is the test
    assert launcher.Launcher is sys.modules["launcher.notebook"].Launcher
