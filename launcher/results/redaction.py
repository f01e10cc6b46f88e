"""Texts without secrets, for people outside: what users name like a secret, what services issue, and known values.

It hides too much rather than too little. Values are replaced within a line, so that the lines and their numbers stay.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from launcher.settings.secrets import SECRET_VALUE, is_secret_option, looks_secret

HIDDEN = "(hidden)"
_SHORTEST = 6
"""Characters of a known value that is replaced wherever it stands: shorter ones are words of other texts too."""
_WORD = r"[A-Za-z][\w.-]*"
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"|'[^']*'"
_VALUE = rf"\\*(?:{_QUOTED})|\\+\"[^\"]*\"|[^\s;&,}}\]]+"
# How a line gives a value to a name, and the value: NAME=value, --name value, "name": "value", name: value to the end
# of the line, words, and a variable of a pod as `kubectl describe` and Python print it.
_PAIRS = tuple(
    (re.compile(head), re.compile(value))
    for head, value in (
        (rf"(?P<name>{_WORD})\s*=\s*", _VALUE),
        (rf"(?<!\S)--?(?P<name>{_WORD})[ \t]+", rf"{_QUOTED}|[^\s-]\S*"),
        (rf"(?P<name>{_WORD})\\*[\"']\s*:\s*", _VALUE),
        (rf"(?P<name>{_WORD}):[ \t]+", r".+"),
        (r"(?i:\b(?P<name>password|passwd|passphrase|token|secret)\s+(?:is\s+|for\s+\S+\s+is\s+)?)", r"\S{6,}"),
        (rf"name['\"]?\s*[:=]\s*['\"]?(?P<name>{_WORD})['\"]?,?\s+['\"]?value['\"]?\s*[:=]\s*", _VALUE),
    )
)
_OPTION = re.compile(rf"--?({_WORD})")
_LOGIN = re.compile(r"(?P<before>://[^\s/?#@:]*:)[^\s/?#@]*(?=@)|(?P<option>(?:-u|--user|--proxy-user)[ =]\S+?:)\S+")
_TOKEN = re.compile(rf"[^\s\"'=,;&()<>]*(?:{SECRET_VALUE})[^\s\"',;&()<>]*", re.IGNORECASE)
_AUTHORIZATION = re.compile(
    r"\b(?P<scheme>bearer|basic|negotiate|digest)(?P<sign>\s+)(?P<value>[\w.~+/=:-]{6,})", re.IGNORECASE
)
_LONG_NAMES = re.compile(
    r"(?i)(client-key-data|client-certificate-data|id-token|refresh-token|access-token|private-key|auth|set-cookie|cookie|authorization)$"
)
# A name in one line, and its value in the next: a variable of a pod, and an option in a list of YAML.
_NAME_LINE = re.compile(
    rf"\s*(?:-\s*)?[\"']?(?:name[\"']?\s*:\s*[\"']?(?P<name>{_WORD})|--?(?P<option>{_WORD}))[\"']?,?\s*"
)
_NEXT_LINE = re.compile(r"(?P<begin>\s*(?:[\"']?value[\"']?\s*:|-)?\s*)(?P<value>\S.*)")
_KEY_BEGIN, _KEY_END = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"), re.compile(r"-----END [A-Z ]*PRIVATE KEY-----")


class Redactor:
    """Hides secrets in texts; `hidden` counts them.

    Args:
        known: secrets by their values, such as the user's own login to the cluster.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        forms = {form for value in known if len(value) >= _SHORTEST for form in _forms(value)}
        # Longer ones first: one secret can begin as another one.
        words = sorted(map(re.escape, forms), key=len, reverse=True)
        self._known = re.compile("|".join(words)) if words else None
        self._in_key = False
        self._name = ""
        self.hidden = 0

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines of one file without secrets."""
        self._in_key, self._name = False, ""
        for line in lines:
            yield self._line(line)

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        return "".join(self.lines(text.splitlines(keepends=True)))

    def json_text(self, text: str, indent: int | None = None) -> str | None:
        """Return a text of JSON without secrets, the same text if nothing is secret; None if it is not JSON."""
        try:
            value = json.loads(text)
            clean = self.value(value)
        except (ValueError, RecursionError):
            return None
        return text if clean == value else json.dumps(clean, indent=indent)

    def value(self, value: Any) -> Any:
        """Return plain values of JSON without secrets."""
        if isinstance(value, str):
            return self._text_or_json(value)
        if isinstance(value, list):
            options = [_OPTION.fullmatch(item) if isinstance(item, str) else None for item in value]
            return [
                self._hide(item)
                if before and isinstance(item, str) and _is_secret(before[1], item)
                else self.value(item)
                for before, item in zip([None, *options], value, strict=False)
            ]
        if not isinstance(value, Mapping):
            return value
        return {key: self._entry(key, item, value.get("name")) for key, item in value.items()}

    def _entry(self, key: str, item: Any, name: Any) -> Any:
        """Return the value of a key of an object; an object with a name and a value is a variable or a header."""
        if isinstance(item, str):
            is_variable = key == "value" and isinstance(name, str)
            if _is_secret(key, item) or (is_variable and (_is_secret(name, item) or looks_secret(name, item))):
                return self._hide(item)
        return self.value(item)

    def _text_or_json(self, text: str) -> str:
        """Return a text that can itself be JSON, such as an annotation."""
        return (self.json_text(text) if text[:1] in ("{", "[") else None) or self.text(text)

    def _line(self, line: str) -> str:
        body = line.rstrip("\r\n")
        end = line[len(body) :]
        if body[:1] in ("{", "[") and (clean := self.json_text(body)) is not None:
            return clean + end
        if self._in_key or _KEY_BEGIN.search(body):
            self._in_key = not _KEY_END.search(body)
            return self._hide(body) + end
        before, own = self._name, _NAME_LINE.fullmatch(body)
        self._name = (own["name"] or own["option"]) if own else ""
        following = _NEXT_LINE.fullmatch(body) if before and not own else None
        if following and _is_secret(before, following["value"].strip("\"',")):
            return self._hide(following["value"], following["begin"]) + end
        for head, value in _PAIRS:
            body = self._hide_values(body, head, value)
        body = _LOGIN.sub(lambda match: self._hide(match[0], (match["before"] or match["option"])), body)
        body = _AUTHORIZATION.sub(lambda match: match["scheme"] + match["sign"] + self._hide(match["value"]), body)
        body = _TOKEN.sub(lambda match: match[0] if HIDDEN in match[0] else self._hide(match[0]), body)
        if self._known is not None:
            body = self._known.sub(lambda match: self._hide(match[0]), body)
        return body + end

    def _hide_values(self, text: str, head: re.Pattern[str], pattern: re.Pattern[str]) -> str:
        """Hide the values of secret names. A value that is kept can itself have a name and a value."""
        position = 0
        while found := head.search(text, position):
            position = found.end()
            value = pattern.match(text, position)
            if value and HIDDEN not in value[0] and _is_secret(found["name"], value[0].strip("\"'\\")):
                mark = value[0][0] if value[0][0] in "\"'" and value[0][-1] == value[0][0] else ""
                text = text[:position] + mark + self._hide(value[0]) + mark + text[value.end() :]
                position += len(HIDDEN)
        return text

    def _hide(self, _secret: str, before: str = "") -> str:
        self.hidden += 1
        return before + HIDDEN


def _is_secret(name: str, value: str) -> bool:
    last = name.rpartition("/")[2]
    return bool(value) and (bool(_LONG_NAMES.search(last)) or is_secret_option(last, value))


def _forms(value: str) -> Iterator[str]:
    """Yield the forms in which a value can stand in a text."""
    yield value
    yield quote(value, safe="")
    yield json.dumps(value)[1:-1]
    # Wherever it begins within a longer text, this part of the encoded text is the same.
    data = value.encode("utf-8", "surrogateescape")
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + data).decode().rstrip("=")
        core = encoded[(0, 2, 3)[shift] : len(encoded) - 1]
        if len(core) >= _SHORTEST:
            yield core
            yield core.replace("+", "-").replace("/", "_")
