"""From the command line to the backend and the settings of a job. It prints nothing, starts nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from launcher.commands.parameters import Where
from launcher.jobs import find_state
from launcher.local.jobs import LocalJobs
from launcher.settings.layers import Settings, resolve_settings
from launcher.settings.options import JobOptions
from launcher.settings.spec import JobSpec
from launcher.submitters import Submitter, choose_submitter
from trainer.shared.config.options import given_options


def resolve_job(
    options: Mapping[str, Any],
    profile: str | None,
    choose: Callable[[JobOptions], tuple[Submitter, str]] = choose_submitter,
) -> tuple[Settings, Submitter, str]:
    """Return the job's settings, the backend that starts it, and why `choose` took this one.

    The user's settings choose the backend. Its defaults and the settings of the run to continue then come below them.

    Raises:
        UsageError: a setting cannot be used.
        LauncherError: the backend cannot be reached, or the run to continue does not exist.
    """
    flags = given_options(dict(options))
    settings = resolve_settings(flags, profile)
    submitter, reason = choose(settings.options)
    defaults = submitter.defaults()
    if defaults is not None:
        settings = resolve_settings(flags, profile, defaults=defaults)
    if settings.train.resume is not None:
        name, earlier = submitter.earlier(settings)
        settings = resolve_settings({**flags, "name": name}, profile, earlier=earlier, defaults=defaults)
    return settings, submitter, reason


def where_to_find(settings: Settings, spec: JobSpec) -> Where:
    """Return what the user typed of it: the environment gives the rest again. Add the backend if the name misleads."""
    fields = [name for name in ("backend", "namespace", "context", "kubeconfig") if settings.origins[name] == "flag"]
    values = {name: getattr(settings.options, name) for name in fields}
    here = LocalJobs()
    if spec.backend != here.name and values.keys() <= {"backend"} and find_state(here, spec.name) is not None:
        values["backend"] = spec.backend
    return Where(**values)
