"""`python -m docs` writes every generated file. `python -m docs --check` names the stale files."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import ResultError
from docs import chart, documents, manifests, options, performance, pictures

ROOT = Path(__file__).parents[1]
_FOLDERS = (manifests.FOLDER, documents.FOLDER)


def files() -> dict[Path, str]:
    """Return the text of each generated file."""
    parts = (options, manifests, chart, documents, performance, pictures)
    return {path: text for part in parts for path, text in part.files().items()}


def stale_files() -> list[Path]:
    """Return the generated files that differ from the code, and the leftover files of generated folders."""
    texts = files()
    leftovers = [path for folder in _FOLDERS for path in folder.iterdir() if path not in texts]
    return leftovers + [
        path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: Sequence[str]) -> int:
    """Write the stale files, or with `--check` only name them; return the exit code."""
    try:
        stale = stale_files()
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    names = " ".join(str(path.relative_to(ROOT)) for path in stale)
    if "--check" in arguments:
        if stale:
            print(f"stale: {names}: run `make generate`", file=sys.stderr)
        return 1 if stale else 0
    texts = files()
    for path in stale:
        if path in texts:
            path.write_text(texts[path], encoding="utf-8")
        else:
            path.unlink()
    print(f"written: {names}" if stale else "nothing was stale")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
