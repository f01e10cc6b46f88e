"""The record of `prove` in the folder of runs: which checks a device has passed with which versions, where and when.

There is one file for each name of a device and set of versions, so that a run finds its own one by itself, and other
devices and versions on the same volume stay. A file that is damaged, or is not such a record, counts as no record.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.shared.files import own_partial, read_file, replacing

FOLDER = ".proofs"
ProvenVerdict = Literal["passed", "unfinished", "failed"]
VERSIONS = ("pnas", "torch", "torch-npu", "cann", "driver")
"""The software that decides a check's result."""


@dataclass(frozen=True)
class ProvenDevice:
    """A device as its runtime names it, and the versions of `VERSIONS` that are there, by package."""

    name: str
    packages: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str, versions: Mapping[str, str]) -> "ProvenDevice":
        """Return the device with the versions that decide a result."""
        return cls(name, tuple((package, versions[package]) for package in VERSIONS if package in versions))

    @property
    def versions(self) -> dict[str, str]:
        """The versions by package."""
        return dict(self.packages)

    def path(self, root: Path) -> Path:
        """Return the place of its record below the folder of runs."""
        content = json.dumps([self.name, self.packages]).encode()
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.name)[:40]
        return root / FOLDER / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.json"

    def __str__(self) -> str:
        """Return the device and its versions as a user reads them."""
        return " ".join([self.name, *(f"{name} {version}" for name, version in self.packages)])


class ProvenCheck(BaseModel):
    """The latest result of a check."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    verdict: ProvenVerdict
    host: str
    time: str
    """ISO 8601 in UTC."""


class ProofRecord(BaseModel):
    """The content of a record."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["pnas-proof"] = "pnas-proof"
    device: str
    versions: dict[str, str]
    checks: dict[str, ProvenCheck]


@dataclass(frozen=True)
class FoundProof:
    """What is known of a device: its checks, or why nothing is."""

    device: ProvenDevice
    path: Path
    checks: Mapping[str, ProvenCheck]
    sha256: str = ""
    problem: str = ""
    """One line; empty if there is a record."""

    def obstacle(self, check: str) -> str | None:
        """Return why the check does not count as passed; None if it does."""
        if self.problem:
            return self.problem
        if check not in self.checks:
            return f"{self.path}: prove has not run {check} here: run it"
        latest = self.checks[check]
        if latest.verdict == "passed":
            return None
        words = "failed" if latest.verdict == "failed" else "did not finish"
        return f"{self.path}: {check} {words} at {latest.time}"


def find_proof(root: Path, device: ProvenDevice) -> FoundProof:
    """Return what the folder of runs knows of the device."""
    path = device.path(root)

    def nothing(problem: str) -> FoundProof:
        return FoundProof(device, path, {}, problem=problem)

    try:
        content = read_file(path)
        record = ProofRecord.model_validate_json(content)
    except FileNotFoundError:
        others = f"; {path.parent} has records of other devices or versions only" if path.parent.is_dir() else ""
        return nothing(f"prove has not run with {device}{others}")
    except OSError as error:
        return nothing(f"{path}: cannot be read: {error.strerror}")
    except (ValidationError, RecursionError):
        return nothing(f"{path}: no record of prove, and ignored: remove it, and run prove again")
    if (record.device, record.versions) != (device.name, device.versions):
        return nothing(f"{path}: a record of another device or version, and ignored")
    return FoundProof(device, path, record.checks, sha256=hashlib.sha256(content).hexdigest())


def add_to_proof(root: Path, device: ProvenDevice, checks: Mapping[str, ProvenCheck]) -> None:
    """Write the latest results of checks into the device's record; the results of its other checks stay.

    Raises:
        OSError: the record cannot be written.
    """
    found = find_proof(root, device)
    record = ProofRecord(device=device.name, versions=device.versions, checks={**found.checks, **checks})
    found.path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(found.path, partial=own_partial(found.path)) as partial:
        partial.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
