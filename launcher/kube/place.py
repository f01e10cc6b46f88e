"""Where a cluster is, as far as somebody says so; a module of its own, because every command line has it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """What a person may say about where the cluster is; what is left out, kubeconfig and the pod know."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None
