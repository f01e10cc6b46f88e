"""A check of `prove`, and its result. Checks know neither each other nor the processes that they run in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainer.topology.visible import DeviceKind

Scope = Literal["node", "device", "pair", "all"]
"""Where a check runs: once on a node, on each device, on two devices in two different pairings, on all devices."""
CheckVerdict = Literal["passed", "failed", "unfinished", "impossible"]
"""`unfinished`: its process died or ran out of time; `impossible`: it means nothing here, and `measured` says why."""
WAITING = "waiting for the other devices in"
"""How the mark of a rank begins that has entered a collective: if it does not end, a rank without it is the cause."""
STOPPED_WHILE = "interrupted while"
"""How a result begins whose check was stopped from outside: it says nothing about the device."""
EVERY_KIND: tuple[DeviceKind, ...] = ("npu", "cuda", "cpu")


@dataclass(frozen=True)
class CheckOutcome:
    """What a check has found, each text in one line."""

    verdict: CheckVerdict
    measured: str
    expected: str = ""
    """With its source: a definition, this machine's CPU, the other devices, a document."""
    advice: str = ""
    """What to do; empty if the check has passed."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Named with their units, such as `matmul_fp16_tflops`."""


@dataclass(frozen=True)
class ProofCheck:
    """One property, in a bounded time."""

    name: str
    """Such as `matmul-speed`; docs/ascend.md and records of runs refer to it."""
    about: str
    """What it shows, in one line."""
    scope: Scope
    function: str
    """`module:function`; the command imports no torch, so only the check's process imports the module."""
    limit_s: float
    kinds: tuple[DeviceKind, ...] = EVERY_KIND
    opens: bool = False
    """Whether it opens the device: where it has not passed, the other checks of the device are not tried."""
    starts_runs: bool = False
    """Whether it starts the trainer, which opens the device: its own process, and none before it, must hold the device,
    which can be for one process at a time (CUDA's compute mode EXCLUSIVE_PROCESS)."""
    compare: "Callable[[Sequence[Result]], list[Result]] | None" = None
    """Returns the results of all places, those as failed that do not fit the others; None: each stands by itself."""
    is_timed: bool = False
    """Whether other programs disturb what is compared: a place that does not fit is then measured again, alone."""


@dataclass(frozen=True)
class CheckPlace:
    """The devices of a check process, and which of them is its own."""

    kind: DeviceKind
    devices: tuple[int, ...]
    """torch's numbers of the node's devices that take part; empty for a check of the node."""
    rank: int
    """Of this process among `devices`."""
    master_port: int
    """For the process group of `devices`, at `master_addr`."""
    master_addr: str = "127.0.0.1"
    node: int | None = None
    """This node's number in a job of several nodes."""
    nodes: tuple[int, ...] = ()
    """The node of each device, if they are not all on this one."""
    rank_table: str = ""
    """The file for HCCL, if it names exactly these devices; else they find each other by their addresses."""
    listener: int | None = None
    """For rank 0, the descriptor of a socket that listens on `master_port` already."""

    @property
    def own_ranks(self) -> tuple[int, ...]:
        """The ranks that this node starts; rank 0 for a check of the node."""
        ranks = range(len(self.devices) or 1)
        return tuple(rank for rank in ranks if not self.nodes or self.nodes[rank] == self.node)

    @property
    def name(self) -> str:
        """This node's devices as a user reads them, such as `npu:3`, `npu:0 npu:1`, `node` or `node1/npu:0`."""
        if not self.devices:
            return "node" if self.node is None else f"node{self.node}"
        return " ".join(map(self.name_of, self.own_ranks))

    def name_of(self, rank: int) -> str:
        """Return the device of a rank as a user reads it, such as `npu:3` or `node1/npu:3`."""
        node = self.nodes[rank] if self.nodes else self.node
        return f"{'' if node is None else f'node{node}/'}{self.kind}:{self.devices[rank]}"


@dataclass(frozen=True)
class Context:
    """What a check gets."""

    place: CheckPlace
    folder: Path
    """For files of the check, which are deleted after it."""
    shared: Path
    """For files that the processes of all places share until all checks have ended."""
    output: Path
    """The folder of runs, which gets the report."""
    mark: Callable[[str], None]
    """Tells what begins now: if the process hangs, its last mark is part of the result."""


CheckFunction = Callable[[Context], CheckOutcome]


@dataclass(frozen=True)
class Result:
    """The outcome of a check at a place."""

    check: str
    place: str
    outcome: CheckOutcome
    seconds: float
