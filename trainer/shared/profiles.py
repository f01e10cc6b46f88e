"""A request to profile some steps of a running job, as the launcher leaves it in the run's folder, and its answer.

There is one request at a time: a file that only a new request can make, and that goes with its answer. A file survives
a worker that is restarted, and reaches every node. `launcher/results/file_server.py` writes it next to the run.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PROFILES_FOLDER = "profiles"
"""In the run's folder: for each profile a folder with its trace, and its answer."""
PROFILE_REQUEST = f"{PROFILES_FOLDER}/request.json"
MOST_PROFILED_STEPS = 20
"""The trace is in memory until the profile ends: 7 MB a step of pnasnet5large, and several times as much to read it."""
_MOST_RANKS = 1 << 20
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class ProfileRequest:
    """The request for a profile.

    Attributes:
        number: names it: the time of the request, up to milliseconds.
    """

    number: int
    rank: int
    steps: int

    @property
    def name(self) -> str:
        """The name of its folder and of its answer."""
        return f"{self.number}-rank-{self.rank}"

    @property
    def answer(self) -> str:
        """The path of its answer, from the run's folder."""
        return f"{PROFILES_FOLDER}/{self.name}.json"

    def folder(self, run: Path) -> Path:
        """Return the folder of its trace."""
        return run / PROFILES_FOLDER / self.name

    def to_json(self) -> str:
        """Return the text of its file."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: bytes) -> "ProfileRequest | None":
        """Return the request of a file; None if it is damaged, or not written to its end."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return None
        match values:
            case {"number": int(number), "rank": int(rank), "steps": int(steps)}:
                valid = 0 < number <= _LARGEST and 0 <= rank < _MOST_RANKS and 0 < steps <= MOST_PROFILED_STEPS
                return cls(number, rank, steps) if valid else None
        return None
