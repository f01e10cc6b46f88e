"""What a container's log comes as: blocks of whole lines, and what is missing between them."""

from dataclasses import dataclass

from launcher.podlogs.stamps import stamps, without_stamps


@dataclass(frozen=True, slots=True)
class Batch:
    r"""Whole lines, each ending in `\n`.

    Attributes:
        data: as the container wrote them.
        stamped: the same lines with the stamps that the kubelet put in front.
        caught_up: all that had been written when the reading began has been delivered. Such a batch is empty.
    """

    data: bytes
    stamped: bytes
    caught_up: bool = False

    def times(self) -> list[str]:
        """When each line was written, as the node's kubelet writes times; empty for a line without one."""
        return stamps(self.stamped)


CAUGHT_UP = Batch(b"", b"", caught_up=True)


def batch_of(stamped: bytes) -> Batch:
    """The batch of lines with their stamps."""
    return Batch(without_stamps(stamped), stamped)


@dataclass(frozen=True, slots=True)
class LogGap:
    """Lines written between these moments could not be had, or nobody can say whether there were any.

    Attributes:
        first_ns, last_ns: nanoseconds since 1970, by the node's clock; both inclusive. None is an open end.
        why: for a person.
    """

    first_ns: int | None
    last_ns: int | None
    why: str


Item = Batch | LogGap
