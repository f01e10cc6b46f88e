"""A page of documentation whose commands are typed, and what they print compared with what the page says.

A block of ```console has commands, which begin with `$ `, and below each what it prints.
"""

import re
from collections.abc import Callable, Iterator

Run = Callable[[str], str]
"""Types one command and gives what appears on the terminal."""

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_POD = re.compile(r"\bpnas-(?:full-[0-9a-f]{8}|1-npu)-[a-z0-9]{5}\b")
# What no two runs have in common: names by content, times, speeds, what a CPU's rounding makes of a loss, and how many
# lines torch adds of its own.
_VARIES = (
    (_POD, "POD"),
    (re.compile(r"\bpnas-full-[0-9a-f]{8}\b"), "JOB"),
    (re.compile(r"\bsha256:[0-9a-f]{64}\b"), "sha256:DIGEST"),
    (re.compile(r"(?<=LAST DEPLOYED: ).*"), "TIME"),
    (re.compile(r" in (\d+ min )?\d+ s$"), " in TIME"),
    (re.compile(r"^(speed|training|top-1|top-5)( +)[\d.]+(?: min)?(?: \d+)?"), r"\1\2NUMBER"),
    (re.compile(r"\b(torch|python|cpus|device|loss|fps|top1|top5|train_s|wall_s|write_s|memory_mib)=\S+"), r"\1=VALUE"),
    (re.compile(r" #\d+\]"), " #NUMBER]"),
    (re.compile(r"(?<=\d:)\d+(?=[ \"])"), "COUNT"),
    (re.compile(r"^(log +)\d+ lines"), r"\1COUNT lines"),
    (re.compile(r"\d+m?\d*s$"), "AGE"),
    (re.compile(r" {2,}"), "  "),
)
# torch warns of what a network is like, in some versions tells what it is connected to, and a cluster may be busy with
# what was there before.
_MAY_BE_LEFT_OUT = re.compile(r"\] \[(?:[WE]\d{4}|Gloo\]) |^job \S+: Pending: ")
_TAGGED = re.compile(r"^\[rank (\d+) ")


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each command and the lines below it."""
    for block in _BLOCK.findall(page):
        for part in block.removeprefix("$ ").split("\n$ "):
            command, *lines = part.rstrip("\n").split("\n")
            yield command, lines


def type_all(page: str, run: Run) -> str:
    """The same page with what the commands print now. A pod is called in a command as it was called in an output."""
    now: dict[str, str] = {}

    def typed(block: re.Match[str]) -> str:
        text = ""
        for command, lines in commands(block[0]):
            shown = _POD.sub(lambda found: now.get(found[0], found[0]), command)
            printed = run(shown)
            now.update(zip(_POD.findall("\n".join(lines)), _POD.findall(printed), strict=False))
            seen = [line for line in printed.rstrip().splitlines() if not _MAY_BE_LEFT_OUT.search(line)]
            text += "".join(f"{line.rstrip()}\n" for line in (f"$ {shown}", *seen))
        return f"```console\n{text}```"

    return _BLOCK.sub(typed, page)


def normalised(page: str) -> str:
    """Without what must differ from run to run."""

    def block(found: re.Match[str]) -> str:
        text = "".join(
            f"$ {_constant(command)}\n" + "".join(f"{line}\n" for line in _ordered(lines))
            for command, lines in commands(found[0])
        )
        return f"```console\n{text}```"

    return _BLOCK.sub(block, page)


def _ordered(lines: list[str]) -> list[str]:
    """Devices' lines by device, as each keeps its order; who is first is chance."""
    kept = [line for line in lines if not _MAY_BE_LEFT_OUT.search(line)]
    others = [line for line in kept if not _TAGGED.match(line)]
    tagged = sorted((line for line in kept if _TAGGED.match(line)), key=lambda line: int(line.split()[1]))
    return [_constant(line) for line in (*others, *tagged)]


def _constant(line: str) -> str:
    for pattern, word in _VARIES:
        line = pattern.sub(word, line)
    return line.rstrip()
