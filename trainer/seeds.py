"""Random draws depend on the position in the run, never on earlier draws.

A seed names a draw by its position (run's seed, epoch, sample or step, ...). So the number of loader workers, a restart
in the middle of an epoch or another world size cannot change what is drawn there.
"""

import hashlib


def derive_seed(*position: int | str) -> int:
    """Return a 63-bit seed for the draws at `position`; different positions give independent seeds (2 us)."""
    digest = hashlib.blake2b("/".join(map(str, position)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
