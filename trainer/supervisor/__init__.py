"""One worker process per device of this node: their lines, their signals, their end and its first cause.

torch's elastic agent tears lines, loses last words and reports the wrong cause. A training job is diagnosed from
exactly these, so this package promises them. It does not know what a worker computes, and never imports torch.
"""

from trainer.supervisor.failure_cause import A_PEER_DIFFERS, Failure, Outcome, blames_a_peer
from trainer.supervisor.loop import Limits, Sample
from trainer.supervisor.node import Supervisor
from trainer.supervisor.worker import WorkerCommand, die_with_supervisor

__all__ = [
    "A_PEER_DIFFERS",
    "Failure",
    "Limits",
    "Outcome",
    "Sample",
    "Supervisor",
    "WorkerCommand",
    "blames_a_peer",
    "die_with_supervisor",
]
