"""What `render` prints: a job's manifests from what was typed, without a cluster and without what asks one."""

from typing import Any

from launcher.errors import RequestError
from launcher.manifests.render import Manifest, render
from launcher.settings.layers import refuse_queue, resolve_settings
from launcher.settings.spec import make_cluster_spec
from trainer.shared.config.options import typed


def manifests(options: dict[str, Any], profile: str | None) -> list[Manifest]:
    """The objects of the job, offline.

    Raises:
        RequestError: a job on this machine has none.
    """
    settings = resolve_settings(typed(options), profile)
    kind = settings.options.backend
    if kind == "local":
        raise RequestError("--backend local: a job on this machine has no manifests; choose batch or volcano")
    if kind == "batch":
        refuse_queue(settings)
    spec = make_cluster_spec(
        settings.options,
        settings.train,
        settings.given,
        backend="batch" if kind == "batch" else "volcano",
        overlay=settings.overlay,
    )
    return render(spec)
