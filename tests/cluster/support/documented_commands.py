"""Type the commands of a documentation page, and compare what they print with the page.

A block of ```console has commands, which begin with `$ `, and their output below them.
"""

import re
from collections.abc import Callable, Iterator

Run = Callable[[str], str]
"""Type one command and return what appears on the terminal."""

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_POD = re.compile(r"\b(?:pnas-(?:full-[0-9a-f]{8}|1-npu)|waits)-[a-z0-9]{5}\b")
# These differ between two runs: names by content, times, nodes, speeds, a loss by a CPU's rounding, and the number of
# lines that torch adds.
_VARIATIONS = (
    (re.compile(r"-files-[0-9a-f]{6}\b"), "-reader"),
    (re.compile(r"\b\d+ files copied, [\d.]+ MB"), "FILES"),
    (_POD, "POD"),
    (re.compile(r"\bpnas-full-[0-9a-f]{8}\b"), "JOB"),
    (re.compile(r"\bsha256:[0-9a-f]{64}\b"), "sha256:DIGEST"),
    (re.compile(r"(?<=LAST DEPLOYED: ).*"), "TIME"),
    (re.compile(r" (in|for) (\d+ min )?[\d.]+ s$"), r" \1 TIME"),
    (re.compile(r"^(speed|training|top-1|top-5)( +)[\d.]+(?: min)?(?: \d+)?"), r"\1\2NUMBER"),
    (
        re.compile(
            r"\b(torch|python|cpus|device|loss|fps|top1|top5|best_top1|train_s|wall_s|write_s|memory_mib|time|started|ended"
            r"|node|(?:data|host|device|peers|saving|evaluation)_s|limit|slowest_rank|slower|slowest_part)=\S+"
        ),
        r"\1=VALUE",
    ),
    (re.compile(r"^(best +top-1) [\d.]+"), r"\1 NUMBER"),
    # A node on a busy machine reports late that it is ready, and which images it has.
    (re.compile(r" on \d of (\d) nodes, "), r" on COUNT of \1 nodes, "),
    (re.compile(r"(?<=image              not checked: ).*"), "STATE"),
    (re.compile(r" #\d+\]"), " #NUMBER]"),
    (re.compile(r"(?<=\d:)\d+(?=[ \"])"), "COUNT"),
    (re.compile(r"^(log +)\d+ lines"), r"\1COUNT lines"),
    (re.compile(r"^(repeated +)\d+ lines"), r"\1COUNT lines"),
    (re.compile(r"^(time +).*; limited by \w+$"), r"\1SHARES"),
    # Of the lines that all ranks say alike, the first one is shown.
    (re.compile(r"^\[rank \d+ cpu:\d+\] (?=start|step|eval)"), "[RANK] "),
    (re.compile(r"\d+m?\d*s$"), "AGE"),
    (re.compile(r" {2,}"), "  "),
)
# In some versions, torch warns about the network's properties and prints its connections. A job may be pending while
# the cluster removes the objects of earlier tests. One rank may be slower than the others.
_OPTIONAL = re.compile(r"\] \[(?:[WE]\d{4}|Gloo\]) |^job \S+: Pending: |^slowest +rank ")
_NUMBERED = re.compile(r"^\[rank (\d+) [a-z]+:\d+ #")


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command and the lines below it."""
    for block in _BLOCK.findall(page):
        for part in block.removeprefix("$ ").split("\n$ "):
            command, *lines = part.rstrip("\n").split("\n")
            yield command, lines


def type_all(page: str, run: Run) -> str:
    """Return the page with the commands' current output.

    If a command names a pod of an earlier output, the pod of the current output takes its place.
    """
    pods: dict[str, str] = {}

    def retype(block: re.Match[str]) -> str:
        text = ""
        for command, lines in commands(block[0]):
            current_command = _POD.sub(lambda name: pods.get(name[0], name[0]), command)
            printed = run(current_command)
            pods.update(zip(_POD.findall("\n".join(lines)), _POD.findall(printed), strict=False))
            output_lines = [line for line in printed.rstrip().splitlines() if not _OPTIONAL.search(line)]
            text += "".join(f"{line.rstrip()}\n" for line in (f"$ {current_command}", *output_lines))
        return f"```console\n{text}```"

    return _BLOCK.sub(retype, page)


def normalised(page: str) -> str:
    """Return the page without the parts that differ between runs."""

    def shorten(block: re.Match[str]) -> str:
        text = "".join(
            f"$ {_constant(command)}\n" + "".join(f"{line}\n" for line in _ordered(lines))
            for command, lines in commands(block[0])
        )
        return f"```console\n{text}```"

    return _BLOCK.sub(shorten, page)


def _ordered(lines: list[str]) -> list[str]:
    """Sort the devices' numbered lines by device, because only the order of each device's lines is fixed."""
    fixed = [line for line in lines if not _OPTIONAL.search(line)]
    others = [line for line in fixed if not _NUMBERED.match(line)]
    tagged = sorted((line for line in fixed if _NUMBERED.match(line)), key=lambda line: int(line.split()[1]))
    return [_constant(line) for line in (*others, *tagged)]


def _constant(line: str) -> str:
    for pattern, word in _VARIATIONS:
        line = pattern.sub(word, line)
    return line.rstrip()
