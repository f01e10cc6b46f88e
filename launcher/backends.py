"""Which backend a command means: the one that is named, or for `auto` the best one that there is, and why.

Submitting chooses by what is there: a cluster that is configured before this machine, Volcano before plain Jobs.
Looking for a job asks this machine first, which costs nothing, and then the cluster.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher import PROGRAM
from launcher.errors import LauncherError, NotFoundError, UnreachableError
from launcher.jobs import Backend, JobRef, JobState
from launcher.kube.api import ApiError
from launcher.kube.connection import is_configured
from launcher.kube.place import Place

if TYPE_CHECKING:
    from launcher.cluster.jobs import ClusterBackend
    from launcher.local.jobs import LocalBackend

CLUSTER = ("batch", "volcano")


@dataclass(frozen=True)
class Choice:
    """A backend, and for `auto` why it was chosen."""

    backend: Backend
    why: str = ""


def choose(name: str, place: Place) -> Choice:
    """The backend to submit to.

    Raises:
        UnreachableError: a cluster is configured and gives no answer; this machine is not used in its place.
    """
    if name == "local":
        return Choice(this_machine())
    if name in CLUSTER:
        return Choice(_cluster(name, place))
    if not is_configured(place):
        return Choice(this_machine(), "no cluster is configured: the job runs on this machine (--backend local)")
    try:
        volcano = _cluster("volcano", place)
        if volcano.served():
            return Choice(volcano, f"{volcano.where} serves Volcano (--backend volcano)")
        return Choice(_cluster("batch", place), f"{volcano.where} has no Volcano (--backend batch)")
    except UnreachableError as error:
        raise UnreachableError(f"{error}, or run on this machine with --backend local") from error


def find(name: str, where: str, place: Place) -> tuple[Backend, JobRef]:
    """The job called `name`, wherever `where` allows it to be.

    Raises:
        NotFoundError: there is none.
        UnreachableError: it is not on this machine, and the cluster gives no answer.
    """
    missing: list[NotFoundError] = []
    places: list[str] = []
    hidden: ApiError | None = None
    for backend in _readable(where, place):
        ref = JobRef(backend.name, name)
        try:
            backend.get(ref)
        except NotFoundError as error:
            missing.append(error)
            places.append(backend.where)
        except ApiError as error:
            hidden = hidden or _of_one_kind(error, where)
        else:
            return backend, ref
    if hidden is not None:
        raise hidden
    if len(set(places)) == 1:
        raise missing[0]
    raise NotFoundError(f"there is no job `{name}` in {' or in '.join(dict.fromkeys(places))}; see `{PROGRAM} list`")


@dataclass(frozen=True)
class Listing:
    """All jobs that could be listed, oldest first, and why others could not."""

    jobs: list[tuple[Backend, JobState]]
    problem: LauncherError | None = None


def list_jobs(where: str, place: Place) -> Listing:
    """The jobs of all backends that `where` allows.

    Raises:
        LauncherError: a backend that was named cannot be asked.
    """
    found: list[tuple[Backend, JobState]] = []
    problem: LauncherError | None = None
    try:
        for backend in _readable(where, place):
            states, hidden = _listed(backend, where)
            found += [(backend, state) for state in states]
            problem = problem or hidden
    except LauncherError as error:
        if where != "auto":
            raise
        problem = problem or error
    return Listing(sorted(found, key=lambda pair: (pair[1].created or 0, pair[1].ref.name)), problem)


def _listed(backend: Backend, where: str) -> tuple[list[JobState], LauncherError | None]:
    try:
        return backend.list(), None
    except ApiError as error:
        return [], _of_one_kind(error, where)


def _of_one_kind(error: ApiError, where: str) -> ApiError:
    """Who may not look at one kind of job, may have jobs of another.

    Raises:
        ApiError: that kind was named, or it is no matter of rights.
    """
    if where != "auto" or not error.of_rights:
        raise error
    return error


def _readable(where: str, place: Place) -> Iterator[Backend]:
    named = place != Place()
    if where == "local" or (where == "auto" and not named):
        yield this_machine()
    if where in CLUSTER:
        yield _cluster(where, place)
    elif where == "auto" and is_configured(place):
        yield from (backend for backend in (_cluster("volcano", place), _cluster("batch", place)) if backend.served())


def this_machine() -> "LocalBackend":
    """The backend for jobs here."""
    from launcher.local.jobs import LocalBackend  # noqa: PLC0415  # a submit to a cluster does without

    return LocalBackend()


def _cluster(name: str, place: Place) -> "ClusterBackend":
    from launcher.cluster.jobs import ClusterBackend  # noqa: PLC0415  # the client costs a quarter of a second

    return ClusterBackend.at(name, place)
