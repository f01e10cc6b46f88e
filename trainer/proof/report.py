"""The report of `prove`: what was checked where, in the order of the catalogue, as a line each and as one document."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.environment.facts import Facts
from trainer.proof.catalogue import CHECKS
from trainer.proof.check import STOPPED_WHILE, ProofCheck, Result
from trainer.records.proof_record import ProvenCheck, ProvenDevice, ProvenVerdict
from trainer.shared.attempts import timestamp
from trainer.shared.container import node_name
from trainer.shared.documents import document, json_text, to_json
from trainer.shared.redaction import HIDDEN, Redactor
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
    hosts: Mapping[str, str]
    """Of each node of a job of several, such as `node1`, the machine."""
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
    hosts: Mapping[str, str] | None = None,
    started_at: float,
    stopped: str | None,
) -> Proof:
    """Return the report of these results, sorted as the catalogue has the checks, with the tuning at the end.

    Args:
        tuning_rows: The names of the results of a tuning.
        hosts: Of each node of a job of several.
        started_at: Seconds since 1970.
    """
    opening = {check.name for check in checks if check.opens}
    passed = [result for result in results if result.outcome.verdict == "passed"]
    order = {name: number for number, name in enumerate([*(check.name for check in checks), *tuning_rows])}
    return Proof(
        device=device,
        device_names={result.place: result.outcome.measured for result in passed if result.check in opening},
        host=node_name(),
        hosts=hosts or {},
        started=timestamp(started_at),
        versions=facts.versions,
        environment=facts,
        results=sorted(results, key=lambda result: order.get(result.check, -1)),
        not_run=[name for name in order if name not in {result.check for result in results}],
        stopped=stopped,
    )


def proven_checks(proof: Proof) -> Iterator[tuple[ProvenDevice, str, dict[str, ProvenCheck]]]:
    """Yield each kind of device of each machine, the machine, and the checks that have run on them or on the machine.

    The worst verdict of a check counts.
    """
    for name, host in {(name, _host(proof, place)) for place, name in proof.device_names.items()}:
        verdicts: dict[str, ProvenVerdict] = {}
        for result in proof.results:
            verdict = result.outcome.verdict
            places = result.place.split()
            concerned = {(proof.device_names.get(place, name), _host(proof, place)) for place in places}
            was_stopped = result.outcome.measured.startswith(STOPPED_WHILE)
            if (name, host) in concerned and verdict != "impossible" and not was_stopped:
                verdicts[result.check] = max(verdict, verdicts.get(result.check, verdict), key=_BADNESS.index)
        checks = {check: ProvenCheck(verdict=verdict, time=proof.started) for check, verdict in verdicts.items()}
        yield ProvenDevice.of(name, proof.versions), host, checks


def _host(proof: Proof, place: str) -> str:
    """Return the machine of a place, such as `node1/npu:0`."""
    return proof.hosts.get(place.partition("/")[0], proof.host)


def proof_text(proof: Proof) -> str:
    """Return the report as a document for programs, for people outside too.

    It is without secrets, network addresses, and the numbers and names of the processes on the devices; no check tells
    these.
    """
    facts, versions = proof.environment, set(proof.versions.values())
    if facts.npu_smi is not None:
        versions.add(facts.npu_smi.version or "")
        processes = tuple(replace(process, pid=0, name=HIDDEN) for process in facts.npu_smi.processes)
        facts = replace(facts, npu_smi=replace(facts.npu_smi, processes=processes))
    values = to_json(replace(proof, environment=facts))
    return json_text(document("Proof", **Redactor(versions=versions).value(values)))


def describe_result(result: Result) -> str:
    """Return a result in one line."""
    outcome = result.outcome
    expected = f" (expected: {outcome.expected})" if outcome.expected else ""
    advice = f": {outcome.advice}" if outcome.advice else ""
    return f"{outcome.verdict:<10} {result.check:<{_WIDTH}} {result.place:<11} {outcome.measured}{expected}{advice}"
