"""Starts jobs on a cluster. `launcher.submitters.Submitter` says what each method promises."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from launcher.cluster.defaults import read_defaults
from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.preflight import examine_cluster, judge
from launcher.cluster.same_job import running_note
from launcher.cluster.submit import is_running, name_for_another_run, submit_job
from launcher.errors import RequestError
from launcher.jobs import PreflightFinding, Submitted, resumable_names
from launcher.manifests.pod_spec import make_pod_spec
from launcher.manifests.render import render_manifests
from launcher.settings.hardware import without_preset
from launcher.settings.layers import Defaults, Earlier, Settings, given_settings
from launcher.settings.options import PLACE
from launcher.settings.spec import JobSpec, renamed
from trainer.shared.config import Layer

# The user says again where the job is. The overlay's content is kept, while its file may be gone.
_OF_ONE_SUBMIT = PLACE | {"overlay"}
# In place of an image that the user has not given yet, so that everything else can be checked.
_NO_IMAGE = "image-is-missing"


@dataclass(frozen=True)
class ClusterSubmitter:
    """Starts jobs of one kind in one namespace."""

    jobs: ClusterJobs

    def defaults(self) -> Defaults | None:
        """Return what the namespace's administrator published."""
        return read_defaults(self.jobs.api)

    def earlier(self, settings: Settings) -> tuple[str, Earlier]:
        """Find the job that is continued; its run folder cannot be seen from here.

        Raises:
            RequestError: the user names no job, or a path that is not absolute.
        """
        resume, name = settings.train.resume, settings.options.name
        if resume != "auto" and not Path(str(resume)).is_absolute():
            raise RequestError(f"--resume {resume}: give the absolute path that the pod sees, or auto")
        if name is None:
            names = resumable_names(self.jobs) or "no job here can be continued"
            raise RequestError(f"--resume {resume} needs --name, the job to continue or to begin: {names}")
        if resume != "auto":
            return name, Earlier()
        attempt = self.jobs.attempt_to_continue(name, self.jobs.find(name))
        if attempt is None:
            return name, Earlier()
        pods = without_preset(attempt.spec.get("pods", {}))
        if attempt.spec.get("train", {}).get("device") == "cpu":
            del pods["hardware"]  # a job without NPUs records none
        options = {field: value for field, value in pods.items() if field not in _OF_ONE_SUBMIT}
        origin = f"attempt {attempt.attempt}"
        return name, Earlier(
            given=Layer(origin, given_settings(attempt.spec)),
            job=Layer(origin, options),
            overlay=attempt.spec.get("overlay", {}),
        )

    def build(self, settings: Settings, *, now: datetime, again: bool = False) -> JobSpec:
        """Return the spec; the content of a job names it, so `now` does not matter."""
        spec = make_pod_spec(settings, self.jobs.kind)
        return renamed(spec, name_for_another_run(self.jobs, spec)) if again and not spec.continues else spec

    def check(self, spec: JobSpec, *, ask_server: bool) -> tuple[str, list[str]]:
        """Render the manifests; the server then judges each object."""
        objects = render_manifests(spec, self.jobs.kind)
        if not ask_server:
            return "its settings are valid", []
        existing = self.jobs.find(spec.name)
        notes = [running_note(existing, spec)] if existing and is_running(self.jobs, spec, existing) else []
        return "the cluster accepts it", [*notes, *judge(self.jobs, spec, objects)]

    def submit(self, spec: JobSpec) -> Submitted:
        """Create the job and its parts."""
        return submit_job(self.jobs, spec)

    def examine(self, settings: Settings) -> Iterator[PreflightFinding]:
        """Yield all that is ready and all that is missing, so that a person sees it at once. The chart's test uses it.

        Raises:
            LauncherError: the cluster does not answer.
        """
        image = settings.options.image
        if image is None:
            advice = "--image is missing: give it, or publish it (defaults.image of the chart)"
            yield PreflightFinding("image", "missing", advice)
            options = settings.options.model_copy(update={"image": _NO_IMAGE})
            settings = replace(settings, options=options)
        spec = make_pod_spec(settings, self.jobs.kind)
        findings = examine_cluster(self.jobs, spec, render_manifests(spec, self.jobs.kind))
        yield from (finding for finding in findings if image is not None or finding.about != "image")
