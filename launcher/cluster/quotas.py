"""Whether the quotas of a namespace have room for the pods of a job. Pure."""

from collections.abc import Sequence
from decimal import Decimal

from launcher.jobs import PreflightFinding
from launcher.kinds.needs import Amounts, JobNeeds, amount_text, amounts
from launcher.kube.api import Json

QUOTA = "quota"
# Resources that a quota names without `requests.`.
_PLAIN = ("cpu", "memory", "ephemeral-storage")
LARGER = "ask for less, or ask the administrator for a larger quota"


def check_quotas(quotas: Sequence[Json], needs: JobNeeds) -> PreflightFinding:
    """Check whether all pods of the job fit into each quota; quotas for some pods only are left out."""
    counted = _counted(needs)
    full = ""
    for quota in quotas:
        spec, status = quota.get("spec") or {}, quota.get("status") or {}
        if spec.get("scopes") or spec.get("scopeSelector"):
            continue
        hard, used = amounts(status.get("hard") or spec.get("hard")), amounts(status.get("used"))
        for name, limit in hard.items():
            wanted = counted.get(name, Decimal())
            shown = f"quota {quota['metadata']['name']}: the job's pods ask for {amount_text(wanted)} {name}"
            if wanted > limit:
                text = f"{shown}, and the namespace has {amount_text(limit)} in all: they can never start; {LARGER}"
                return PreflightFinding(QUOTA, "missing", text)
            in_use = used.get(name, Decimal())
            if wanted and in_use + wanted > limit and not full:
                taken = f"{amount_text(in_use)} of {amount_text(limit)} are in use"
                full = f"{shown}, and {taken}: a job waits until others end"
    return PreflightFinding(QUOTA, "later", full) if full else PreflightFinding(QUOTA, "ok", "room for the job's pods")


def _counted(needs: JobNeeds) -> Amounts:
    """Return what the job's pods count for, by the names that quotas use."""
    requests, limits, count = needs.of_job(), needs.of_job("limits"), Decimal(needs.count)
    return {
        "pods": count,
        "count/pods": count,
        **{name: requests[name] for name in _PLAIN if name in requests},
        **{f"requests.{name}": amount for name, amount in requests.items()},
        **{f"limits.{name}": amount for name, amount in limits.items()},
    }
