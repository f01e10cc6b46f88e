"""Random draws as functions of where the run stands, never of what was drawn before.

A key names a draw by its place (seed, epoch, sample or step, ...), so that the number of loader workers, a restart in
the middle of an epoch or another world size cannot change what is drawn there.
"""

import hashlib


def key(*place: int | str) -> int:
    """A 63-bit seed for the draws at `place`; different places give independent seeds (2 us)."""
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
