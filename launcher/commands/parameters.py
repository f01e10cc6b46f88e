"""The parameters that several commands share: a job, a backend or `--json` means the same in each command."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from launcher import PROGRAM
from launcher.errors import RequestError
from launcher.jobs import BACKEND_NAMES, UNSUPPORTED, BackendName
from launcher.kube.access import ClusterAccess
from trainer.shared import durations, variables
from trainer.shared.documents import JSON_OPTION

_OPTION = re.compile("--.")
_EMPTY = re.compile("--[^=]+=")
_PLACE = Group.create_ordered("Where")


def flag(text: str, **more: Any) -> Parameter:
    """Return a switch that is off by default and has no `--no-` form."""
    return Parameter(help=text, negative="", show_default=False, **more)


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `10m` or `1h30m`.

    Raises:
        RequestError: the text has another form.
    """
    try:
        return durations.seconds(text)
    except ValueError as error:
        raise RequestError(str(error)) from None


def refuse_empty_values(tokens: Sequence[str]) -> None:
    """Refuse an option with an empty value, as a shell passes for an unset variable.

    `delete NAME --namespace ""` would delete the job of another namespace.

    Raises:
        RequestError: there is one; the settings of a job have the same rule and the same message.
    """
    given = [before for before, value in pairwise(tokens) if value == "" and _OPTION.match(before)]
    given += [token[:-1] for token in tokens if _EMPTY.fullmatch(token)]
    if given:
        raise RequestError(f"{given[0]}: is empty; give a value, or leave it out")


def examples(*commands: str) -> str:
    """Return the last section of a help page."""
    return "Examples:\n" + "\n".join(f"  {PROGRAM} {command}" for command in commands)


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Where a job is. PNAS_BACKEND, PNAS_NAMESPACE, … give what the user leaves out; the launcher finds the rest."""

    backend: Annotated[
        BackendName | None,
        Parameter(help="This machine, or a kind of job on a cluster. [default: all of them]", group=_PLACE),
    ] = None
    namespace: Annotated[
        str | None, Parameter(help="Namespace of the cluster. [default: the context's]", group=_PLACE)
    ] = None
    context: Annotated[
        str | None, Parameter(help="Context of the kubeconfig. [default: its current one]", group=_PLACE)
    ] = None
    kubeconfig: Annotated[
        Path | None, Parameter(help="Kubeconfig file. [default: KUBECONFIG or ~/.kube/config]", group=_PLACE)
    ] = None

    @property
    def backend_name(self) -> BackendName:
        """The backend, or `auto`.

        Raises:
            RequestError: PNAS_BACKEND does not name a backend.
            UsageError: a variable is mistyped or empty.
        """
        variables.check(os.environ)
        name = self.backend or variables.read("backend", os.environ) or "auto"
        for known in BACKEND_NAMES:
            if name == known:
                return known
        reason = UNSUPPORTED.get(name, f"no such backend; there are {', '.join(BACKEND_NAMES)}")
        raise RequestError(f"{'backend ' if self.backend else 'PNAS_BACKEND='}{name}: {reason}")

    @property
    def access(self) -> ClusterAccess:
        """The chosen cluster.

        Raises:
            UsageError: a variable is empty.
        """
        kubeconfig = self.kubeconfig or variables.read("kubeconfig", os.environ)
        return ClusterAccess(
            kubeconfig=None if kubeconfig is None else Path(kubeconfig),
            context=self.context or variables.read("context", os.environ),
            namespace=self.namespace or variables.read("namespace", os.environ),
        )

    @property
    def words(self) -> str:
        """The options that lead to the same place again, for messages, like ` --namespace training`; or empty."""
        options = {"--backend": self.backend, "--namespace": self.namespace, "--context": self.context}
        options["--kubeconfig"] = None if self.kubeconfig is None else str(self.kubeconfig)
        return "".join(f" {option} {shlex.quote(value)}" for option, value in options.items() if value is not None)


ANYWHERE = Where()
"""No choice by the user."""
LatestName = Annotated[str | None, Parameter(help="The job. [default: the latest]", show_default=False)]
JobName = Annotated[str, Parameter(help="The job.")]
JsonFlag = Annotated[bool, flag("Print JSON, errors too (docs/json.md).", name=JSON_OPTION)]
Profile = Annotated[
    str | None, Parameter(help="Settings from a YAML file, or seed, recommended or digits.", group="Job")
]
