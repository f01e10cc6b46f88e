"""Parts of a result's origin: the hash of its settings, installed versions and the source revision.

A figure without its origin does not count.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import trainer
from trainer.shared.config import TrainConfig


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
        # One process for both facts: a run waits for it before its first step.
        options = ("--porcelain=v2", "--branch", "--no-ahead-behind", "--untracked-files=no")
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            status = ["git", "-C", str(source), "status", *options]
            done = subprocess.run(status, capture_output=True, text=True, check=True, timeout=10)
            commit = re.search(r"^# branch.oid ([0-9a-f]+)$", done.stdout, re.MULTILINE)
            if commit is not None:
                changed = any(not line.startswith("#") for line in done.stdout.splitlines())
                return commit[1] + "+changes" * changed
    return os.environ.get("PNAS_REVISION") or None
