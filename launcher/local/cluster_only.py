"""Settings that a job on this machine cannot honour: refused if they were given for this job, named otherwise.

A deadline or a retry that is ignored in silence is a broken promise. A variable of the environment is set for all jobs,
also for those on a cluster, so it is only named.
"""

from collections.abc import Mapping

from launcher.errors import RequestError
from launcher.settings.layers import Settings
from launcher.settings.options import PLACE, ClusterOptions
from trainer.shared import variables
from trainer.shared.config.layers import flag_name


def refuse_cluster_only(settings: Settings) -> None:
    """Refuse the settings of the command line and of a profile that only a cluster can honour.

    Raises:
        RequestError: there are some; it names them and where they come from.
    """
    origins = {field: settings.origins[field] for field in ClusterOptions.model_fields}
    names = ", ".join(
        flag_name(field) + ("" if origin == "flag" else f" (from {origin})")
        for field, origin in origins.items()
        if origin.startswith(("flag", "profile "))
    )
    if names:
        raise RequestError(f"{names}: only jobs on a cluster can honour it; leave it out to run on this machine")


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a note about the variables that a job on this machine ignores; no note without such a variable."""
    fields = (field for field in ClusterOptions.model_fields if field not in PLACE)
    names = ", ".join(variables.name_of(field) for field in fields if variables.read(field, environ) is not None)
    return [f"not used by a job on this machine: {names}"] if names else []
