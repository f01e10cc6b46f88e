"""From the command line to a job that can be submitted: settings, backend, spec. It prints nothing, starts nothing."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from launcher.commands.parameters import Where
from launcher.errors import UnreachableError
from launcher.jobs import PreflightFinding, find_state
from launcher.local.jobs import LocalJobs
from launcher.settings.layers import Settings, resolve_settings
from launcher.settings.options import JobOptions
from launcher.settings.spec import JobSpec
from launcher.submitters import Choice, Submitter, choose_submitter, local_submitter
from trainer.shared.config.options import given_options


@dataclass(frozen=True)
class PreparedJob:
    """A job before its start.

    Attributes:
        choice_reason: for `--backend auto`, why this backend was chosen.
        where: the options that lead to the job again, for messages.
    """

    submitter: Submitter
    spec: JobSpec
    choice_reason: str
    where: str


def prepare_job(options: Mapping[str, Any], profile: str | None, *, now: datetime, again: bool = False) -> PreparedJob:
    """Resolve the settings, choose the backend, build the spec.

    Args:
        again: start the same job once more, under another name, if it has ended.

    Raises:
        UsageError: a setting cannot be used.
        LauncherError: the backend cannot be reached, or the run to continue does not exist.
    """
    settings, choice = _resolve(options, profile, choose_submitter)
    spec = choice.submitter.build(settings, now=now, again=again)
    return PreparedJob(choice.submitter, spec, choice.reason, where_to_find(settings, spec).words)


def settings_for_display(options: Mapping[str, Any], profile: str | None) -> tuple[Settings, str]:
    """Return the settings that `prepare_job` would use, and a note if the cluster's defaults are missing from them.

    Raises:
        UsageError: a setting cannot be used.
        LauncherError: the backend that the user named cannot be reached, or the run to continue does not exist.
    """
    notes: list[str] = []

    def choose(job_options: JobOptions) -> Choice:
        try:
            return choose_submitter(job_options)
        except UnreachableError as error:
            if job_options.backend != "auto":
                raise
            notes.append(f"the cluster's defaults are not in it: {error}")
            return Choice(local_submitter())

    settings, _ = _resolve(options, profile, choose)
    return settings, "; ".join(notes)


def examine_place(options: Mapping[str, Any], profile: str | None) -> Iterator[PreflightFinding]:
    """Yield what is ready for such a job and what is missing.

    Raises:
        UsageError: a setting cannot be used.
        LauncherError: the job would run on this machine, or the cluster cannot be reached.
    """
    settings, choice = _resolve(options, profile, choose_submitter)
    return choice.submitter.examine(settings)


def where_to_find(settings: Settings, spec: JobSpec) -> Where:
    """Return what the user typed of it: the environment gives the rest again. Add the backend if the name misleads."""
    fields = [name for name in ("backend", "namespace", "context", "kubeconfig") if settings.origins[name] == "flag"]
    values = {name: getattr(settings.options, name) for name in fields}
    here = LocalJobs()
    if spec.backend != here.name and values.keys() <= {"backend"} and find_state(here, spec.name) is not None:
        values["backend"] = spec.backend
    return Where(**values)


def _resolve(
    options: Mapping[str, Any], profile: str | None, choose: Callable[[JobOptions], Choice]
) -> tuple[Settings, Choice]:
    """Resolve the user's settings; then add the backend's defaults and the settings of the run to continue."""
    flags = given_options(dict(options))
    settings = resolve_settings(flags, profile)
    choice = choose(settings.options)
    defaults = choice.submitter.defaults()
    if defaults is not None:
        settings = resolve_settings(flags, profile, defaults=defaults)
    if settings.train.resume is not None:
        name, earlier = choice.submitter.earlier(settings)
        settings = resolve_settings({**flags, "name": name}, profile, earlier=earlier, defaults=defaults)
    return settings, choice
