"""The record of `prove` in the folder of runs: which checks a device has passed with which versions, where and when.

There is a folder for each name of a device and set of versions, so that a run finds its own one by itself, and other
devices and versions on the same volume stay. In it each machine has its own file: machines that share the volume never
write the same file, and one that has passed does not make up for another one that has failed. A file that is damaged,
or is not such a record, counts as no record.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.shared.files import exclusive, own_partial, read_file, replacing

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

    def folder(self, root: Path) -> Path:
        """Return the place of its records below the folder of runs."""
        return root / FOLDER / _file_name(self.name, json.dumps([self.name, self.packages]))

    def __str__(self) -> str:
        """Return the device and its versions as a user reads them."""
        return " ".join([self.name, *(f"{name} {version}" for name, version in self.packages)])


class ProvenCheck(BaseModel):
    """The latest result of a check on a machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    verdict: ProvenVerdict
    time: str
    """ISO 8601 in UTC."""


class ProofRecord(BaseModel):
    """The content of a machine's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["pnas-proof"] = "pnas-proof"
    device: str
    versions: dict[str, str]
    host: str
    checks: dict[str, ProvenCheck]


@dataclass(frozen=True)
class FoundProof:
    """What is known of a device: its checks, or why nothing is."""

    device: ProvenDevice
    folder: Path
    hosts: Mapping[str, Mapping[str, ProvenCheck]]
    """The checks that have run on each machine."""
    sha256: str = ""
    """Of the records' bytes, one after the other in the order of their names."""
    problem: str = ""
    """One line; empty if there is a record."""

    def obstacle(self, check: str, host: str) -> str | None:
        """Return why the check does not count as passed on a machine, and what to do; None if it does.

        The machine's own result counts. Without one, a machine has passed, and no machine has failed.
        """
        if self.problem:
            return self.problem
        results = {name: checks[check] for name, checks in self.hosts.items() if check in checks}
        if host in results:
            results = {host: results[host]}
        if not results:
            return f"{self.folder}: prove has not run {check} here: run it"
        for name, result in results.items():
            if result.verdict != "passed":
                words = "failed" if result.verdict == "failed" else "did not finish"
                if name == host:
                    return f"{self.folder}: {check} {words} on {name} at {result.time}: run prove here again"
                # A container can have another name each time, so that its old one never proves anything again.
                advice = f"run prove there again, or delete {_file(self.folder, name)} if that machine is gone"
                return f"{check} {words} on {name} at {result.time}: {advice}"
        return None


def find_proof(root: Path, device: ProvenDevice) -> FoundProof:
    """Return what the folder of runs knows of the device."""
    folder = device.folder(root)
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        others = f"; {folder.parent} has records of other devices or versions only" if folder.parent.is_dir() else ""
        return FoundProof(device, folder, {}, problem=f"prove has not run with {device}{others}")
    except OSError as error:
        return FoundProof(device, folder, {}, problem=f"{folder}: cannot be read: {error.strerror}")
    found = [_read(path, device) for path in paths]
    records = [one for one in found if not isinstance(one, str)]
    if not records:
        problem = next((one for one in found if isinstance(one, str)), f"{folder}: has no record of prove")
        return FoundProof(device, folder, {}, problem=problem)
    sha256 = hashlib.sha256(b"".join(content for _, content in records)).hexdigest()
    return FoundProof(device, folder, {record.host: record.checks for record, _ in records}, sha256)


def _read(path: Path, device: ProvenDevice) -> tuple[ProofRecord, bytes] | str:
    """Return a machine's record of the device and the file's content, or what is wrong with it."""
    try:
        content = read_file(path)
        record = ProofRecord.model_validate_json(content)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    except (ValidationError, RecursionError):
        return f"{path}: no record of prove, and ignored: remove it, and run prove again"
    if (record.device, record.versions) != (device.name, device.versions) or path != _file(path.parent, record.host):
        return f"{path}: a record of another device, version or machine, and ignored"
    return record, content


def add_to_proof(root: Path, device: ProvenDevice, host: str, checks: Mapping[str, ProvenCheck]) -> None:
    """Write the latest results of checks on a machine into its record; the results of its other checks stay.

    Raises:
        OSError: the record cannot be written.
    """
    folder = device.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        known = find_proof(root, device).hosts.get(host, {})
        record = ProofRecord(device=device.name, versions=device.versions, host=host, checks={**known, **checks})
        path = _file(folder, host)
        with replacing(path, partial=own_partial(path)) as partial:
            partial.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _file(folder: Path, host: str) -> Path:
    return folder / f"{_file_name(host, host)}.json"


def _file_name(words: str, content: str) -> str:
    """Return a name that begins with the words, as far as they are plain, and is another one for other content."""
    digest = hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', words)[:40]}-{digest[:12]}"
