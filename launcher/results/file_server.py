"""Serve the files of a run's folder on standard output, as standard input asks: `python -c THIS FOLDER`.

This text is the whole program: it runs in the job's image, which can be older than the launcher, so it needs the
standard library only. Each request is a line of JSON, and each answer begins with one. It changes nothing but the
request for a profile, `profiles/request.json`, of which there is one at a time.

{"list": true}                        -> {"files": [[PATH, BYTES], ...], "unreadable": [PATH, ...]}
{"read": PATH, "from": N, "to": M}    -> {"bytes": M - N}, these bytes, {"sha256": of the first M bytes}
{"hash": PATH, "to": M}               -> {"sha256": of the first M bytes}
{"ask": TEXT}                         -> {"waits": the text of the request that waits now}
{"withdraw": TEXT}                    -> {}; the request with this text is gone
{"answer": PATH}                      -> {"waits": as above or null, "text": of the file or null}
Any request can have the answer {"error": TEXT}; a read can have {"bytes": -1} too: the file became shorter.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 18
_PROFILES, _REQUEST = "profiles", "request.json"


def main() -> None:
    """Answer requests until standard input ends."""
    root, out = Path(sys.argv[1]), sys.stdout.buffer
    for line in sys.stdin.buffer:
        try:
            answer = _answer(root, json.loads(line), out)
        except (OSError, ValueError) as error:
            answer = {"error": getattr(error, "strerror", None) or str(error)}
        _say(answer, out)


def _say(answer: dict[str, Any], out: BinaryIO) -> None:
    out.write(json.dumps(answer).encode() + b"\n")
    out.flush()


def _answer(root: Path, request: dict[str, Any], out: BinaryIO) -> dict[str, Any]:
    if "list" in request:
        return _list(root)
    if "ask" in request:
        return {"waits": _ask(root, request["ask"])}
    if "withdraw" in request:
        if _text(root, f"{_PROFILES}/{_REQUEST}") == request["withdraw"]:
            (root / _PROFILES / _REQUEST).unlink(missing_ok=True)
        return {}
    if "answer" in request:
        # In this order: the request goes when its answer is there.
        waits = _text(root, f"{_PROFILES}/{_REQUEST}")
        return {"waits": waits, "text": _text(root, request["answer"])}
    end, digest = request["to"], hashlib.sha256()
    with _open(root, request["read"] if "read" in request else request["hash"]) as file:
        for block in _blocks(file, request.get("from", end)):
            digest.update(block)
        if "read" in request:
            if os.fstat(file.fileno()).st_size < end:
                return {"bytes": -1}
            left = end - request["from"]
            _say({"bytes": left}, out)
            try:
                for block in _blocks(file, left):
                    digest.update(block)
                    out.write(block)
                    left -= len(block)
            except OSError:
                digest.update(b"unreadable")
            # The other side counts on all bytes; the hash says that they are wrong.
            out.write(b"\0" * left)
    return {"sha256": digest.hexdigest()}


def _list(root: Path) -> dict[str, Any]:
    files, unreadable = list[tuple[str, int]](), list[str]()

    def note(error: OSError) -> None:
        if error.filename == str(root):
            raise error
        unreadable.append(os.path.relpath(error.filename, root))

    for folder, _, names in os.walk(root, onerror=note):
        for name in names:
            path = Path(folder, name)
            try:
                found = path.lstat()
            except FileNotFoundError:  # the run has removed it meanwhile
                continue
            if stat.S_ISREG(found.st_mode):
                files.append((str(path.relative_to(root)), found.st_size))
    return {"files": sorted(files), "unreadable": unreadable}


def _ask(root: Path, text: str) -> str:
    """Make the request, unless another one waits; return the waiting request."""
    (root / _PROFILES).mkdir(exist_ok=True)
    folder = os.open(root / _PROFILES, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        file = os.open(_REQUEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
    except FileExistsError:
        return _text(root, f"{_PROFILES}/{_REQUEST}") or ""
    finally:
        os.close(folder)
    try:
        with os.fdopen(file, "w") as output:
            output.write(text)
    except OSError:
        (root / _PROFILES / _REQUEST).unlink()
        raise
    return text


def _text(root: Path, path: str) -> "str | None":
    try:
        with _open(root, path) as file:
            return file.read(_BLOCK).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _open(root: Path, path: str) -> BinaryIO:
    """Open a regular file below the folder, by no link."""
    *folders, name = path.split("/")
    if not all((*folders, name)) or {".", ".."} & {*folders, name}:
        raise ValueError("no path below the folder")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError("no regular file")
    return os.fdopen(file, "rb")


def _blocks(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count > 0 and (block := file.read(min(_BLOCK, count))):
        count -= len(block)
        yield block


if __name__ == "__main__":
    main()
