"""The report of `prove`: what was checked where, in the order of the catalogue, as a line each and as one document."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.environment.facts import Facts
from trainer.proof.catalogue import CHECKS
from trainer.proof.check import STOPPED_WHILE, ProofCheck, Result
from trainer.records.proof_record import ProvenCheck, ProvenDevice, ProvenVerdict
from trainer.shared.attempts import timestamp
from trainer.shared.documents import document, json_text, to_json
from trainer.shared.redaction import Redactor
from trainer.topology.visible import DeviceKind

_BADNESS: Sequence[ProvenVerdict] = ("passed", "unfinished", "failed")
_WIDTH = max(len(check.name) for check in CHECKS)


@dataclass(frozen=True)
class Proof:
    """What `prove` has found on a machine."""

    device: DeviceKind
    device_names: Mapping[str, str]
    """Of each device that has opened, such as `npu:0`, its name as its runtime says it."""
    host: str
    started: str
    """ISO 8601 in UTC."""
    versions: Mapping[str, str]
    """Of pnas, torch, torch-npu, CANN, the driver and others, as far as they are there."""
    environment: Facts
    """The facts about the machine, as `trainer env` tells them."""
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
    tuning_rows: Sequence[str] = (),
    started_at: float,
    stopped: str | None,
) -> Proof:
    """Return the report of these results, sorted as the catalogue has the checks, with the tuning at the end.

    Args:
        tuning_rows: The names of the results of a tuning.
        started_at: Seconds since 1970.
    """
    opening = {check.name for check in checks if check.opens}
    passed = [result for result in results if result.outcome.verdict == "passed"]
    order = {name: number for number, name in enumerate([*(check.name for check in checks), *tuning_rows])}
    return Proof(
        device=device,
        device_names={result.place: result.outcome.measured for result in passed if result.check in opening},
        host=platform.node(),
        started=timestamp(started_at),
        versions=facts.versions,
        environment=facts,
        results=sorted(results, key=lambda result: order.get(result.check, -1)),
        not_run=[name for name in order if name not in {result.check for result in results}],
        stopped=stopped,
    )


def proven_checks(proof: Proof) -> dict[ProvenDevice, dict[str, ProvenCheck]]:
    """Return for each kind of device the worst verdict of each check that has run on such devices or on the node."""
    kinds: dict[ProvenDevice, dict[str, ProvenCheck]] = {}
    for name in set(proof.device_names.values()):
        verdicts: dict[str, ProvenVerdict] = {}
        for result in proof.results:
            verdict = result.outcome.verdict
            concerned = {proof.device_names.get(device, name) for device in result.place.split()}
            was_stopped = result.outcome.measured.startswith(STOPPED_WHILE)
            if name in concerned and verdict != "impossible" and not was_stopped:
                verdicts[result.check] = max(verdict, verdicts.get(result.check, verdict), key=_BADNESS.index)
        kinds[ProvenDevice.of(name, proof.versions)] = {
            check: ProvenCheck(verdict=verdict, host=proof.host, time=proof.started)
            for check, verdict in verdicts.items()
        }
    return kinds


def proof_text(proof: Proof) -> str:
    """Return the report as a document for programs, without secrets: it is for people outside, too."""
    return json_text(document("Proof", **Redactor().value(to_json(proof))))


def describe_result(result: Result) -> str:
    """Return a result in one line."""
    outcome = result.outcome
    expected = f" (expected: {outcome.expected})" if outcome.expected else ""
    advice = f": {outcome.advice}" if outcome.advice else ""
    return f"{outcome.verdict:<10} {result.check:<{_WIDTH}} {result.place:<11} {outcome.measured}{expected}{advice}"
