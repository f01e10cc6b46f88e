"""Pin every package with its hashes for one version of torch: `python requirements/lock.py 2.14.1`.

`test-<torch>.txt` holds all that `make test` needs; `run-<torch>.txt` only what `make run` needs, in the same versions.
Index addresses stay out of the files.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
COMMAND = [
    *("uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.10", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate", "--quiet"),
]


def lock(torch: str) -> None:
    """Write both files for this version of torch."""
    everything = FOLDER / f"test-{torch}.txt"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint:
        constraint.write(f"torch=={torch}\n")
        constraint.flush()
        _compile(["demo", "test", "dev"], Path(constraint.name), everything)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint:
        pins = (line.split("\\")[0].strip() for line in everything.read_text().splitlines() if "==" in line)
        constraint.write("\n".join(pins) + "\n")
        constraint.flush()
        _compile(["demo"], Path(constraint.name), FOLDER / f"run-{torch}.txt")


def _compile(extras: list[str], constraint: Path, output: Path) -> None:
    chosen = [word for extra in extras for word in ("--extra", extra)]
    uv = [str(Path(sys.executable).with_name("uv")), *COMMAND[1:]]
    subprocess.run([*uv, *chosen, "--constraint", str(constraint), "--output-file", str(output)], check=True)


if __name__ == "__main__":
    lock(sys.argv[1])
