"""The report of `prove`: what was checked where, in the order of the catalogue, as a line each and as one document."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.environment.facts import Facts
from trainer.proof.check import ProofCheck, Result
from trainer.shared.attempts import timestamp
from trainer.shared.documents import document, json_text, to_json
from trainer.topology.visible import DeviceKind


@dataclass(frozen=True)
class Proof:
    """What `prove` has found on a machine."""

    device: DeviceKind
    host: str
    started: str
    """ISO 8601 in UTC."""
    versions: Mapping[str, str]
    """Of pnas, torch, torch-npu, CANN, the driver and others, as far as they are there."""
    results: Sequence[Result]
    not_run: Sequence[str]
    """The checks without a result: the checks were stopped before."""
    stopped: str | None
    """The name of the signal that ended the checks early."""


def make_proof(
    device: DeviceKind,
    facts: Facts,
    checks: Sequence[ProofCheck],
    results: Sequence[Result],
    *,
    started_at: float,
    stopped: str | None,
) -> Proof:
    """Return the report of these results, sorted as the catalogue has the checks.

    Args:
        started_at: Seconds since 1970.
    """
    order = {check.name: number for number, check in enumerate(checks)}
    return Proof(
        device=device,
        host=platform.node(),
        started=timestamp(started_at),
        versions=software_versions(facts),
        results=sorted(results, key=lambda result: order[result.check]),
        not_run=[name for name in order if name not in {result.check for result in results}],
        stopped=stopped,
    )


def software_versions(facts: Facts) -> dict[str, str]:
    """Return the versions on which a result rests."""
    versions = {**facts.packages, "python": facts.python, "cann": facts.cann, "driver": facts.driver}
    return {name: version for name, version in versions.items() if version is not None}


def proof_text(proof: Proof) -> str:
    """Return the report as a document for programs."""
    return json_text(document("Proof", **to_json(proof)))


def describe_result(result: Result) -> str:
    """Return a result in one line."""
    outcome = result.outcome
    expected = f" (expected: {outcome.expected})" if outcome.expected else ""
    advice = f": {outcome.advice}" if outcome.advice else ""
    return f"{outcome.verdict:<10} {result.check:<16} {result.place:<8} {outcome.measured}{expected}{advice}"
