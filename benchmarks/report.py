"""The result of a benchmark: a Markdown page on the terminal and in `results/`, and the machine that it names."""

import platform
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def publish(name: str, lines: Sequence[str]) -> None:
    """Print the page, and write it to the file `name` in `results/`."""
    text = "\n".join(lines)
    print(text)
    (RESULTS / name).write_text(text + "\n", encoding="utf-8")


def processor() -> str:
    """Return the CPU's model name, or the architecture if the system does not tell the name."""
    names = _processor_names()
    return names[0] if names else platform.machine()


def machine() -> str:
    """Return the CPU's model name and the number of CPUs."""
    return f"{processor()}, {len(_processor_names()) or '?'} CPUs"


def _processor_names() -> list[str]:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
