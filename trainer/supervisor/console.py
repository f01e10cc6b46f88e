"""The way out of every line of a node: stdout and one file per rank, over all groups of workers.

The numbers of a rank's lines go on from one process of the rank to the next: a container has one log, and a gap in its
numbers means a lost line.
"""

from collections.abc import Sequence
from typing import BinaryIO

from trainer.supervisor.output import LogFile, Sink, Tagger
from trainer.supervisor.worker import WorkerCommand


class Console:
    """The taggers, the files and stdout; each write error is reported once."""

    def __init__(self, stdout: BinaryIO, *, node_rank: int) -> None:
        self.stdout = Sink(stdout.fileno())
        self._node = Tagger(f"node {node_rank}")
        self._ranks: dict[int, tuple[Tagger, LogFile]] = {}
        self._reported: list[Sink] = []

    def begin(self, command: WorkerCommand) -> tuple[Tagger, LogFile]:
        """Return the tagger and the file for a new process of a rank; the first one decides the file."""
        if command.rank not in self._ranks:
            self._ranks[command.rank] = (
                Tagger(f"rank {command.rank} {command.device}"),
                LogFile(command.log, command.check_owner),
            )
        tagger, log = self._ranks[command.rank]
        tagger.begin()
        return tagger, log

    @property
    def counts(self) -> str:
        """The number of lines of each rank: `3:1042 4:977`."""
        return " ".join(f"{rank}:{tagger.count}" for rank, (tagger, _) in self._ranks.items())

    def print(self, output: Sequence[bytes]) -> None:
        """Write tagged lines to stdout, and report once a stdout or a file that has broken."""
        self.stdout.write(b"".join(output))
        for rank, (_, log) in self._ranks.items():
            if log.error is not None and log not in self._reported:
                self._reported.append(log)
                self.say(f"log of rank={rank} cannot be written: {log.error}: {log.path}")
        if self.stdout.error is not None and self.stdout not in self._reported:
            self._reported.append(self.stdout)
            self.say(f"stdout cannot be written: {self.stdout.error}; the lines go on in this file")

    def say(self, text: str) -> None:
        """Print a line of the supervisor's own; write it to the ranks' files if stdout is gone."""
        line = self._node.say(text)
        self.stdout.write(line)
        if self.stdout.error is not None:
            for _, log in self._ranks.values():
                log.write(line)

    def close(self) -> None:
        """Close the files."""
        for _, log in self._ranks.values():
            log.close()
