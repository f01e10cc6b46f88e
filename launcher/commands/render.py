"""`render`: print a job's manifests. It needs no cluster, and imports nothing that asks one."""

import sys
from typing import Any

from launcher.app import RUN, app
from launcher.parameters import Profile, examples


@app.command(group=RUN, help_epilogue=examples("render --npus 8 --image registry.example/pnas:0.1.0"))
def render(*, profile: Profile = None, **options: Any) -> None:
    """Print the manifests that submit would create, as YAML for kubectl; without a cluster.

    --backend auto renders for Volcano.
    """
    from launcher.manifests import manifests  # noqa: PLC0415  # pydantic

    sys.stdout.write(manifests(options, profile))
