"""The checks of `prove`, in the order in which they run and are reported."""

from trainer.proof.check import ProofCheck

CHECKS: tuple[ProofCheck, ...] = (
    ProofCheck(
        "open",
        "the device opens, and says its name",
        "device",
        "trainer.proof.device:prove_open",
        limit_s=180.0,
    ),
)
