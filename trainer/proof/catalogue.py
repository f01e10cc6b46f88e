"""The checks of `prove`, in the order in which they run and are reported."""

import difflib
from collections.abc import Sequence

from trainer.proof.check import ProofCheck
from trainer.shared.errors import UsageError
from trainer.topology.visible import DeviceKind

CHECKS: tuple[ProofCheck, ...] = (
    ProofCheck(
        "open",
        "the device opens, and says its name",
        "device",
        "trainer.proof.device:prove_open",
        limit_s=180.0,
        opens=True,
    ),
)


def choose_checks(names: Sequence[str] | None, kind: DeviceKind) -> list[ProofCheck]:
    """Return the checks of these names for a kind of device, and the check that opens the device, if they need it.

    Raises:
        UsageError: there is no check of a name, or none for this kind of device.
    """
    known = {check.name: check for check in CHECKS}
    for name in names or ():
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(sorted(known))}"
            raise UsageError(f"--only {name}: no such check; {advice}")
        if kind not in known[name].kinds:
            raise UsageError(f"--only {name}: this check is for {' and '.join(known[name].kinds)}, not for {kind}")
    chosen = [check for check in CHECKS if kind in check.kinds and (names is None or check.name in names)]
    uses_device = any(check.scope != "node" for check in chosen)
    return [check for check in CHECKS if check in chosen or (check.opens and uses_device)]
