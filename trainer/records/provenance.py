"""The origin of a result: versions, device, command, settings' hash, data and source revision.

A figure without these does not count.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trainer
from trainer.shared.config import TrainConfig

_PACKAGES = ("pnas", "torch", "torchvision", "torch-npu", "apex", "numpy", "pillow", "safetensors")


def provenance(
    config: TrainConfig,
    *,
    command: Sequence[str],
    device: Mapping[str, Any],
    data_fingerprint: str,
    world_size: int,
    started: str,
) -> dict[str, Any]:
    """Return the record that `provenance.json` holds; every value is a plain JSON type."""
    return {
        "command": list(command),
        # With the settings that weights bring along; config.yaml was written earlier and does not show them.
        "config": config.model_dump(mode="json"),
        "config_sha256": config_hash(config),
        "data_fingerprint": data_fingerprint,
        "device": dict(device),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "revision": source_revision(),
        "started": started,
        "versions": installed_versions(_PACKAGES),
        "world_size": world_size,
    }


def config_hash(config: TrainConfig) -> str:
    """Return the SHA-256 of the settings in canonical JSON."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the version of each of these packages that is installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def source_revision() -> str | None:
    """Return the git commit of this source, with `+changes` if the tree differs; PNAS_REVISION inside an image."""
    source = Path(trainer.__file__).resolve().parents[1]
    if (source / ".git").exists():
        commit = _git(source, "rev-parse", "HEAD")
        if commit is not None:
            return commit + ("+changes" if _git(source, "status", "--porcelain", "--untracked-files=no") else "")
    return os.environ.get("PNAS_REVISION") or None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
