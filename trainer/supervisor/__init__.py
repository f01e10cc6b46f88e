"""One worker process per device of this node: their lines, their signals, their end and its first cause.

torch's elastic agent tears lines, loses last words and reports the wrong cause; a training job is diagnosed from
exactly these, so they are promised here. Nothing here knows what a worker computes, and torch is never imported.
"""

from trainer.supervisor.failure_cause import Failure, Outcome, blames_a_peer
from trainer.supervisor.loop import supervise
from trainer.supervisor.parent_death import die_with_supervisor
from trainer.supervisor.worker import WorkerCommand

__all__ = ["Failure", "Outcome", "WorkerCommand", "blames_a_peer", "die_with_supervisor", "supervise"]
