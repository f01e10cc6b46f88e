"""`python -m tests.cluster.testbed up|down`: a cluster in the background to try things out on."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.testbed.artifacts.binaries import BuildError
from tests.cluster.testbed.nodes.processes import StartError
from tests.cluster.testbed.playground import Playground, PlaygroundError

USAGE = "python -m tests.cluster.testbed up|down"
INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Execute the command and return the exit code."""
    try:
        match arguments:
            case ["up", *folder]:
                sys.stdout.write(_playground(folder).up(starting=_say_starting))
            case ["down", *folder]:
                sys.stdout.write(_playground(folder).down())
            case ["hold", *folder]:
                _playground(folder).hold()
            case _:
                sys.stderr.write(f"usage: {USAGE}\n")
                return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing is left\n")
        return INTERRUPTED
    except (PlaygroundError, StartError, BuildError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _say_starting() -> None:
    sys.stderr.write("# starting; a machine's first one builds Kubernetes, in about ten minutes\n")


def _playground(folder: Sequence[str]) -> Playground:
    """Return the playground of the folder that a test names, or the user's."""
    return Playground(*map(Path, folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
