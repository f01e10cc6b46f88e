"""One archive of all that tells of a job's faults, without secrets, in the layout of Huawei's `ascend-fd parse`.

ascend-fd wants one folder for each node, with `rank-R.txt` (the console of a rank) and `process_log/` (CANN's logs), by
its source: TrainLogSaver and ProcessLogSaver of Ascend/mind-cluster, ascend_fd/pkg/parse/parser_saver.py. The folder of
each attempt has these folders; its files come from the run's folder.
"""

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from launcher.errors import ConflictError, LauncherError
from trainer.shared.files import own_partial, replacing
from trainer.shared.redaction import Redactor
from trainer.shared.text import visible

_CONSOLE = re.compile(r"(\d{1,9})/console-(\d{1,9})\.log")
_EVIDENCE = re.compile(r"evidence/(attempt-\d+/node-\d+/.+)")
# Large, in no text form, or of no use to find a fault.
_LEFT_OUT = re.compile(r"(checkpoints|profiles|tensorboard)/|.*\.(safetensors|npz|pickle|partial)")
_HEAD_BYTES = 1 << 16
_MOST_JSON = 1 << 24
README = """\
What is known of job {name}. Secrets are replaced by (hidden); their number is {hidden}. A value that no pattern knows
stays: look through the files before you send them to others.

attempt-N/node-K/          the logs of one node in an attempt of the run: its console as rank-R.txt, CANN's logs in
                           process_log/, its environment, and how the workers ended. Huawei's tool reads such a folder:
                           ascend-fd parse -i attempt-N/node-K -o EMPTY_FOLDER
run/                       metrics, settings, provenance (versions) and attempts, as in the run's folder
cluster/                   the job's objects, or its records on this machine, as JSON; the rank table, if it has one
console.log                the log as the launcher reads it now
status.json events.txt explanation.txt
{left_out}"""


@dataclass
class Bundle:
    """An archive that is being written.

    Attributes:
        files: the paths of its files.
        left_out: what is not in it, and why.
    """

    name: str
    redactor: Redactor
    archive: tarfile.TarFile
    files: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add_text(self, path: str, text: str) -> None:
        """Add a text without its secrets."""
        self.add_lines(path, text.splitlines(keepends=True))

    def add_lines(self, path: str, lines: Iterable[str], *, clean: bool = False) -> None:
        """Add the lines of a file without their secrets; each ends in a newline.

        Args:
            clean: no secret is in them.
        """
        with TemporaryFile() as file:
            for line in lines if clean else self.redactor.lines(lines):
                file.write(line.encode("utf-8", "surrogateescape"))
            self._add(path, file)

    def add_run(self, folder: Path, node_of: Callable[[int], int]) -> None:
        """Add the files of a run.

        Args:
            node_of: returns the node of a rank.
        """
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_file() and not path.name.startswith(".pnas-fetch"):
                self._add_file(path, name, _place(name, node_of))

    def _add_file(self, path: Path, name: str, place: str) -> None:
        with path.open("rb") as file:
            if b"\0" in file.read(_HEAD_BYTES):
                self.left_out.append(f"{self._clean(name)}: it is not text, so its secrets cannot be found")
                return
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as text:
            # A document over several lines is read as a whole: a name and its value can stand in different lines.
            if (
                path.suffix == ".json"
                and (clean := self.redactor.json_text(text.read(_MOST_JSON), indent=2)) is not None
            ):
                self.add_lines(place, clean.splitlines(keepends=True), clean=True)
                return
            text.seek(0)
            self.add_lines(place, text)

    def add_readme(self) -> None:
        """Add the page that says what the archive holds."""
        left_out = "".join(f"\nnot here: {visible(self.redactor.text(text))}" for text in self.left_out)
        text = README.format(name=visible(self.name), hidden=self.redactor.hidden, left_out=left_out)
        self._add("README.txt", io.BytesIO(text.encode("utf-8", "backslashreplace")))

    def _clean(self, path: str) -> str:
        """Return a path without secrets in its names."""
        return "/".join(map(self.redactor.text, path.split("/")))

    def _add(self, path: str, file: IO[bytes]) -> None:
        if (clean := self._clean(path)) != path:
            path = f"{clean}.{len(self.files)}"  # two names can be alike without their secrets
        entry = tarfile.TarInfo(f"bundle-{self.name}/{path}")
        entry.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.archive.addfile(entry, file)
        self.files.append(path)


def is_of_use(path: str) -> bool:
    """Return whether a bundle has this file of a run's folder."""
    return not _LEFT_OUT.match(path)


def node_of_ranks(facts: Mapping[str, object], nodes: int) -> Callable[[int], int]:
    """Return the node of each rank; `facts` is the provenance of the run.

    Nodes have equally many ranks, one node's after the other's: so a rank table has them, and torchrun.
    """
    world_size = facts.get("world_size")
    each = max(1, world_size // nodes) if isinstance(world_size, int) else 1 << 30
    return lambda rank: min(rank // each, nodes - 1)


@contextmanager
def open_bundle(path: Path, name: str, redactor: Redactor) -> Iterator[Bundle]:
    """Give an archive to fill; it gets its name when it is whole.

    Raises:
        ConflictError: there is a file of this name.
        LauncherError: it cannot be written.
    """
    _check_free(path)
    try:
        with replacing(path, partial=own_partial(path)) as partial:
            with tarfile.open(partial, "w:gz", format=tarfile.PAX_FORMAT) as archive:
                bundle = Bundle(name, redactor, archive)
                yield bundle
                bundle.add_readme()
            _check_free(path)  # another launcher can have written it meanwhile
    except OSError as error:
        raise LauncherError(f"{path}: cannot be written: {error.strerror}; choose another place by --to") from error


def _check_free(path: Path) -> None:
    if path.exists():
        raise ConflictError(f"{path} exists: choose another place by --to")


def _place(name: str, node_of: Callable[[int], int]) -> str:
    """Return the path in the archive of a file of the run."""
    if console := _CONSOLE.fullmatch(name):
        rank = int(console[1])
        return f"attempt-{console[2]}/node-{node_of(rank)}/rank-{rank}.txt"
    evidence = _EVIDENCE.fullmatch(name)
    return evidence[1] if evidence else f"run/{name}"
