"""Turn a worker's bytes into whole, tagged and numbered lines; none lost, torn or mixed with another worker's.

Pure: chunks go in, bytes for stdout and the log file come out. Lines are handled by the chunk, because a write and a
system call per line cost several times what the lines themselves do.
"""

LINE_LIMIT = 1 << 20  # bytes after which a line without an end is split, so that memory stays bounded
ERROR = b"error "


class Tagger:
    """Numbers the lines of one worker, from 1, and remembers the last ones for the question why it died."""

    def __init__(self, tag: str) -> None:
        """`tag` is what stands before the number: `rank 3 npu:3`."""
        self._prefix = f"[{tag} #".encode()
        self._rest = b""
        self.count = 0
        """How many lines there have been."""
        self._error_at = 0
        self.last_line = b""
        self.error_line: bytes | None = None
        """The last line that began with `error `: by convention the worker's own reason for giving up."""

    @property
    def lines_since_error(self) -> int:
        """How many lines came after `error_line`."""
        return self.count - self._error_at

    def feed(self, chunk: bytes) -> bytes:
        """The tagged form of every line that `chunk` completes."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        if b"\r" in rest:
            done, rest = _split_progress(rest)
            lines += done
        while len(rest) > LINE_LIMIT:
            lines.append(rest[:LINE_LIMIT])
            rest = rest[LINE_LIMIT:]
        self._rest = rest
        return self._tag(lines)

    def close(self) -> bytes:
        """The tagged form of a last line that never got its end."""
        rest, self._rest = self._rest, b""
        return self._tag([rest]) if rest.strip(b"\r") else b""

    def say(self, text: str) -> bytes:
        """One whole line of the supervisor's own."""
        return self._tag([text.encode(errors="replace")])

    def _tag(self, lines: list[bytes]) -> bytes:
        if not lines:
            return b""
        text = b"\n".join(lines)  # one search in the whole chunk instead of one in each line
        if b"\r" in text:
            lines = [piece for line in lines for piece in _redrawn(line)]
        first, prefix = self.count + 1, self._prefix
        if ERROR in text:
            for number, line in enumerate(lines, first):
                if line.startswith(ERROR):
                    self.error_line, self._error_at = line, number
        self.last_line = next((line for line in reversed(lines) if line.strip()), self.last_line)
        self.count += len(lines)
        return b"".join([b"%b%d] %b\n" % (prefix, number, line) for number, line in enumerate(lines, first)])


def _redrawn(line: bytes) -> list[bytes]:
    """A progress bar redraws its line after each carriage return: every state that it showed becomes a line."""
    return [piece for piece in line.split(b"\r") if piece] or [b""]


def _split_progress(rest: bytes) -> tuple[list[bytes], bytes]:
    """A bar that has not ended its line yet is shown up to its last redraw; an ending CR may still become CRLF."""
    shown, separator, current = rest.rpartition(b"\r")
    if current:
        return ([shown] if shown else []), current
    earlier, middle, last = shown.rpartition(b"\r")
    return ([earlier] if middle and earlier else []), last + separator
