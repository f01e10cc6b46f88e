"""From what was typed to a job that can be submitted: settings, backend, spec. It prints nothing and starts nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from launcher.backends import Choice, choose, this_machine
from launcher.cluster.preflight import Finding
from launcher.commands.parameters import Where
from launcher.commands.resume import find_cluster_earlier, find_earlier
from launcher.errors import RequestError, UnreachableError
from launcher.jobs import Backend, Submitted, known
from launcher.kube.place import Place
from launcher.manifests.render import render
from launcher.settings.layers import Earlier, Settings, refuse_queue, resolve_settings
from launcher.settings.spec import JobOptions, JobSpec, make_cluster_spec, make_spec, renamed
from trainer.shared.config import Layer
from trainer.shared.config.options import typed


@dataclass(frozen=True)
class Prepared:
    """A job that nobody has started yet.

    Attributes:
        why: for an automatic choice, why this backend.
        words: the options that lead to it again.
    """

    backend: Backend
    spec: JobSpec
    why: str
    words: str

    def spec_of(self, done: Submitted) -> JobSpec:
        """The spec under the name that the job has got."""
        return renamed(self.spec, done.ref.name)

    def goes_on(self, name: str) -> bool:
        """Whether there is a job of this name, and it has not ended."""
        state = known(self.backend, name)
        return state is not None and not state.phase.ended


def prepare(options: dict[str, Any], profile: str | None, *, now: datetime) -> Prepared:
    """Resolve what was typed.

    Raises:
        UsageError: a setting cannot be used.
        LauncherError: the backend cannot be reached, or the run that is to be continued is none.
    """
    settings, choice = _resolve(options, profile, lambda found: choose(found.backend, _place(found)))
    why = choice.why if settings.options.backend == "auto" else ""
    spec = _spec(settings, choice.backend, now)
    return Prepared(choice.backend, spec, why, _where(settings, spec).words)


def settings_of(options: dict[str, Any], profile: str | None) -> tuple[Settings, str]:
    """The settings that `prepare` would use, for a person to read, and what to know of them: the cluster is away.

    Raises:
        UsageError: a setting cannot be used.
        LauncherError: a backend that was named cannot be reached, or the run that is to be continued is none.
    """
    away: list[str] = []

    def chosen(found: JobOptions) -> Choice:
        try:
            return choose(found.backend, _place(found))
        except UnreachableError as error:
            if found.backend != "auto":
                raise
            away.append(f"the cluster's defaults are not in it: {error}")
            return Choice(this_machine())

    return _resolve(options, profile, chosen)[0], "; ".join(away)


def findings_of(options: dict[str, Any], profile: str | None) -> Iterator[Finding]:
    """What of the cluster is ready for such a job, and what is not.

    Raises:
        UsageError: a setting cannot be used.
        RequestError: no cluster is meant.
        LauncherError: it cannot be reached.
    """
    from launcher.cluster.doctor import examine  # noqa: PLC0415  # as above
    from launcher.cluster.jobs import ClusterBackend  # noqa: PLC0415  # this machine does without

    settings, choice = _resolve(options, profile, lambda found: choose(found.backend, _place(found)))
    if not isinstance(choice.backend, ClusterBackend):
        raise RequestError("a job on this machine needs no namespace: give --kubeconfig, or set KUBECONFIG")
    return examine(choice.backend, settings)


def check_only(job: Prepared, how: Literal["client", "server"], *, again: bool) -> list[str]:
    """Check a job without starting it; what the server warned of, and what is there already.

    Args:
        again: as `Backend.submit` has it.

    Raises:
        LauncherError: it could not be started.
    """
    from launcher.cluster.dry_run import check  # noqa: PLC0415  # as above
    from launcher.cluster.jobs import ClusterBackend  # noqa: PLC0415  # only a dry run pays
    from launcher.local.preflight import check as check_here  # noqa: PLC0415  # as above

    if not isinstance(job.backend, ClusterBackend):
        check_here(job.spec)
        return []
    objects = render(job.spec)
    if how == "client":
        return []
    from launcher.cluster.submit import foresee  # noqa: PLC0415  # as above

    there = foresee(job.backend, job.spec, again=again)
    return [*filter(None, [there]), *check(job.backend, job.spec, objects)]


def _resolve(
    options: dict[str, Any], profile: str | None, chosen: Callable[[JobOptions], Choice]
) -> tuple[Settings, Choice]:
    """What was asked for, with what is known of the run that it continues."""
    flags = typed(options)
    settings = resolve_settings(flags, profile)
    choice = chosen(settings.options)
    defaults = _defaults_of(choice.backend)
    if defaults is not None:
        settings = resolve_settings(flags, profile, defaults=defaults)
    if settings.train.resume is not None:
        name, earlier = _earlier(settings, choice.backend)
        settings = resolve_settings({**flags, "name": name}, profile, earlier=earlier, defaults=defaults)
    return settings, choice


def _earlier(settings: Settings, backend: Backend) -> tuple[str, Earlier]:
    from launcher.cluster.jobs import ClusterBackend  # noqa: PLC0415  # this machine does without

    if isinstance(backend, ClusterBackend):
        return find_cluster_earlier(settings, backend)
    return find_earlier(settings, backend)


def _defaults_of(backend: Backend) -> Callable[[str], Layer] | None:
    """What the namespace's administrator has set for a mode; this machine has none."""
    from launcher.cluster.defaults import read_defaults  # noqa: PLC0415
    from launcher.cluster.jobs import ClusterBackend  # noqa: PLC0415  # this machine does without

    found = read_defaults(backend.api) if isinstance(backend, ClusterBackend) else None
    return None if found is None else found.layer


def _spec(settings: Settings, backend: Backend, now: datetime) -> JobSpec:
    if backend.name == "local":
        options, train, given = settings.options, settings.train, settings.given
        return make_spec(options, train, given, now=now, taken=lambda name: known(backend, name) is not None)
    kind: Literal["batch", "volcano"] = "batch" if backend.name == "batch" else "volcano"
    if kind == "batch":
        refuse_queue(settings)
    return make_cluster_spec(settings.options, settings.train, settings.given, backend=kind, overlay=settings.overlay)


def _place(options: JobOptions) -> Place:
    return Place(options.kubeconfig, options.context, options.namespace)


def _where(settings: Settings, spec: JobSpec) -> Where:
    """What was typed of it, for the environment will say the rest again; and the backend if a name alone misleads."""
    names = [name for name in ("backend", "namespace", "context", "kubeconfig") if settings.origins[name] == "flag"]
    words = {name: getattr(settings.options, name) for name in names}
    if spec.backend != "local" and words.keys() <= {"backend"} and known(this_machine(), spec.name) is not None:
        words["backend"] = spec.backend
    return Where(**words)
