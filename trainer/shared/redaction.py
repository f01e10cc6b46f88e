"""Texts without secrets, for people outside: what users name like a secret, what services issue, and known values.

It hides too much rather than too little. Values are replaced within a line, so that the lines and their numbers stay.
"""

import base64
import ipaddress
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from trainer.shared.secrets import SECRET_VALUE, is_secret_option, looks_secret

HIDDEN = "(hidden)"
_SHORTEST = 6
"""Characters of a known value that is replaced wherever it stands: shorter ones are words of other texts too."""
_NAME = r"\w[\w.-]*"
# It begins where no other word can: each start costs the length of a line.
_WORD = rf"(?<![\w.-])[.-]*{_NAME}"
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"|'[^']*'"
_VALUE = rf"\\*(?:{_QUOTED})|\\+\"[^\"]*\"|[^\s;&,}}\]]+"
# How a line gives a value to a name, and the value: NAME=value and env["NAME"] = "value"; --name value;
# "name": "value"; name: value to the end of the line; in words; a variable of a pod as `kubectl describe` and Python
# print it; a tuple and a call of Python; shells and a Dockerfile; columns of a table.
_PAIRS = tuple(
    (re.compile(head), re.compile(value))
    for head, value in (
        (rf"(?P<name>{_WORD})[\"'\])]*\s*(?:=|%3[Dd])\s*", _VALUE),
        (rf"(?<!\S)--?(?P<name>{_NAME})[ \t]+", rf"{_QUOTED}|[^\s-]\S*"),
        (rf"(?P<name>{_WORD})\\*[\"']\s*:\s*", _VALUE),
        (rf"(?P<name>{_WORD})[ \t]*:[ \t]+", r".+"),
        (
            r"(?i:\b(?P<name>password|passwd|passphrase|token|secret(?!\s+\")|(?:api|access|license|secret) key)"
            r"(?:\s+(?:for|of)\s+\S+?)?(?:\s+is|\s*:)?\s+)",
            r"\S{6,}",
        ),
        (rf"name['\"]?\s*[:=]\s*['\"]?(?P<name>{_NAME})['\"]?,?\s+['\"]?value['\"]?\s*[:=]\s*", _VALUE),
        (rf"[\"'](?P<name>{_NAME})[\"']\s*,\s*", _QUOTED),
        (rf"(?P<name>{_WORD})\(\s*", _QUOTED),
        (rf"\b(?:set\s+-\w+|setenv|ENV|ARG)\s+(?P<name>{_NAME})[ \t]+", r".+"),
        (rf"(?P<name>{_WORD})(?:[ \t]*[|│┃]|[ \t]{{2,}}|\t)[ \t]*", r"[^\s|│┃]+"),
    )
)
_OPTION = re.compile(rf"--?({_NAME})")
# Where a secret stands without a name. A number after `host:` is a port, one before `@sha256:` a version.
_PLACES = tuple(
    re.compile(f"(?P<before>{before}){value}", re.IGNORECASE)
    for before, value in (
        (r"://[^\s/?#@:]*:(?!\d{1,5}(?:[/?#\s]|$))", r"[^\s\"'<>]*(?=@)"),
        (r"://", r"[\w~.-]{10,}(?=@)"),
        (r"(?<![\w/@:.-])[\w.-]+:", r"[^\s/@\"':][^\s/@\"']{2,}(?=@(?!sha\d)\w)"),
        (r"(?<![\w-])(?:-u|--user|--proxy-user)(?:[ =]|(?=\w))[\"']?[^\s:\"']+:", r"[^\s\"']+"),
        (r"\b(?:sshpass|mysql\w*|mariadb|redis-cli|(?:docker|podman) login)\b[^|;&]{0,200}?\s-[pa]\s*", r"[^\s-]\S*"),
        (r"\bwandb login\s+(?:-\S+\s+)*", r"\S+"),
        (r"(?:\bmachine\s+\S+\s+|^\s*)login\s+", r"\S{10,}"),
        (r"\becho\s+(?:-n\s+)?", r"\S+(?=\s*\|.*(?:passw|login|token))"),
        (r"\b(?:bearer|basic|negotiate|digest)(?:\s+auth)?(?:\s+|%20|:\s*)", r"[\w.~+/=:%-]{6,}"),
    )
)
# Values of services, beyond the ones that no job may have in clear; the base64 of a private key begins with the last.
_ISSUED = (
    r"\bsk-(?:proj|ant|svcacct|admin)-\w|\b[rs]k_(?:live|test)_\w|\bhv[sb]\.\w{8}|\bSG\.\w{8}|\bxapp-\d|\bdop_v1_\w"
    r"|\bgl(?:rt|dt|ptt|soat)-\w|\bAGE-SECRET-KEY-|\bLS0tLS1CRUdJTi"
)
_VALUE_OF_SERVICE = re.compile(rf"{SECRET_VALUE}|{_ISSUED}", re.IGNORECASE)
_PART = re.compile(r"[^\s\"'=,;&()<>]+")
# Without one of these, a line has no name of a secret, and no place of one: most lines are done then.
_NAME_HINT = re.compile(
    r"token|secret|pass|pwd|credential|auth|bearer|jwt|key|cookie|dsn|sig|sk\b|pat(?:\b|_)|certificate|dockerconfig",
    re.IGNORECASE,
)
_PLACE_HINT = re.compile(r"@|-u|bearer|basic|negotiate|digest|login|sshpass|mysql|mariadb|redis|echo", re.IGNORECASE)
_LONG_NAMES = re.compile(
    r"(?i)(client[-_]key[-_]data|client-certificate-data|id-token|refresh-token|access-token|private-key|auth|set-cookie"
    r"|cookie|authorization|signature|dockerconfigjson|(^|[._-])sk)$"
)
_NO_SECRETS = re.compile(r"(?i)(topology|cache|group|partition|public|sort)[-_]?keys?|authorized_keys")
# A terminal's escape, also as a text shows it.
_COLOR = re.compile(r"(?:\x1b|\\x1b|\\u001b|\\033)\[[\d;:]*[A-Za-z]")
# A name in one line, and its value in the next: a variable of a pod, an option in a list of YAML, and a key of YAML.
_NAME_LINE = re.compile(
    rf"\s*(?:-\s*)?[\"']?(?:name[\"']?\s*:\s*[\"']?(?P<name>{_NAME})|--?(?P<option>{_NAME})|(?P<key>[.]*{_NAME})\s*:)"
    r"[\"']?,?\s*"
)
_NEXT_LINE = re.compile(r"(?P<begin>\s*(?:[\"']?value[\"']?\s*:|-)?\s*)(?P<value>\S.*)")
_BLOCK = re.compile(rf"(?P<indent>\s*(?:-\s+)?)[\"']?(?P<name>[.]*{_NAME})[\"']?\s*:\s*[|>][+-]?\d?\s*")
_KEY_BEGIN = re.compile(r"---- ?BEGIN [A-Z0-9 ]*PRIVATE KEY|^Private-Lines:")
_KEY_END = re.compile(r"---- ?END [A-Z0-9 ]*PRIVATE KEY")
# A line of a key has many characters of base64 in a row, or ends with a short rest of them.
_KEY_LINE = re.compile(r"[A-Za-z0-9+/]{16}|(?:^|[\s\"'])=?[A-Za-z0-9+/]+=*[\"',\\n]*$")
_LONGEST_KEY = 200
"""Lines after which a key without an end is over."""


# Four numbers, or groups of hexadecimal digits, the last two of which can be written as four numbers.
_QUAD = r"\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)"
_ADDRESS = re.compile(
    rf"(?<!\d)(?<!\d\.){_QUAD}|(?<![\w:.])(?P<name>(?=[0-9A-Fa-f]*[g-zG-Z_])\w+:)?"
    rf"(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}(?:{_QUAD}|[0-9A-Fa-f]{{0,4}})(?!\w)"
)
_VERSION_BEFORE = re.compile(r"\b(?:version|v)[\s:='\"]*$", re.IGNORECASE)
_LONGEST_WORD_BEFORE = 20


class Redactor:
    """Hides secrets in texts; `hidden` counts them.

    Args:
        known: secrets by their values, such as the user's own login to the cluster.
        versions: of software, which can look like addresses: with them, network addresses are hidden too, except this
            machine's own loopback.
    """

    def __init__(self, known: Iterable[str] = (), *, versions: Collection[str] | None = None) -> None:
        self._versions = versions
        forms = {form for value in known if len(value) >= _SHORTEST for form in _forms(value)}
        # Longer ones first: one secret can begin as another one.
        words = sorted(map(re.escape, forms), key=len, reverse=True)
        self._known = re.compile("|".join(words)) if words else None
        self._forget()
        self.hidden = 0

    def _forget(self) -> None:
        """Begin a file: no line of it is known."""
        self._key_lines, self._name, self._block = 0, "", -1

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines of one file without secrets."""
        self._forget()
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
                self._hide() if before and isinstance(item, str) and _is_secret(before[1], item) else self.value(item)
                for before, item in zip([None, *options], value, strict=False)
            ]
        if not isinstance(value, Mapping):
            return value
        if value.get("kind") == "Secret":
            value = {**value, **{name: self._hide() for name in ("data", "stringData") if value.get(name)}}
        return {key: self._entry(key, item, value.get("name")) for key, item in value.items()}

    def _entry(self, key: str, item: Any, name: Any) -> Any:
        """Return the value of a key of an object; an object with a name and a value is a variable or a header."""
        if isinstance(item, str):
            is_variable = key == "value" and isinstance(name, str)
            if _is_secret(key, item) or (is_variable and (_is_secret(name, item) or looks_secret(name, item))):
                return self._hide()
        return self.value(item)

    def _text_or_json(self, text: str) -> str:
        """Return a text that can itself be JSON, such as an annotation."""
        return (self.json_text(text) if text[:1] in ("{", "[") else None) or self.text(text)

    def _line(self, line: str) -> str:
        body = line.rstrip("\r\n")
        end = line[len(body) :]
        if self._is_of_key(body) or self._is_in_block(body):
            return self._hide() + end
        if body[:1] in ("{", "[") and (clean := self._json_line(body)) is not None:
            return clean + end
        body = _COLOR.sub("", body)
        before, own = self._name, _NAME_LINE.fullmatch(body)
        self._name = (own["name"] or own["option"] or own["key"]) if own else ""
        following = _NEXT_LINE.fullmatch(body) if before and not own else None
        if following and _is_value(following["value"]) and _is_secret(before, following["value"].strip("\"',")):
            return self._hide(following["begin"]) + end
        for place in _PLACES if _PLACE_HINT.search(body) else ():
            body = place.sub(lambda match: self._hide(match["before"]), body)
        for head, value in _PAIRS if _NAME_HINT.search(body) else ():
            body = self._hide_values(body, head, value)
        if _VALUE_OF_SERVICE.search(body):
            body = _PART.sub(lambda part: self._hide() if _VALUE_OF_SERVICE.search(part[0]) else part[0], body)
        if self._known is not None:
            body = self._known.sub(lambda _: self._hide(), body)
        if self._versions is not None:
            body = _ADDRESS.sub(self._hide_address, body)
        return body + end

    def _hide_address(self, found: re.Match[str]) -> str:
        """Return what stands for something like an address; the colon that ends `fd00::1:` is not a part of one."""
        name = found["name"] or ""
        text = found[0].removeprefix(name)
        end = ":" if text.endswith(":") and not text.endswith("::") else ""
        try:
            address = ipaddress.ip_address(text.removesuffix(end))
        except ValueError:
            return found[0]
        before = found.string[max(0, found.start() - _LONGEST_WORD_BEFORE) : found.start()]
        is_version = text in (self._versions or ()) or _VERSION_BEFORE.search(before)
        return found[0] if is_version or address.is_loopback or address.is_unspecified else name + self._hide() + end

    def _is_of_key(self, body: str) -> bool:
        """Return whether a line is of a private key; lines of other ranks can stand between its lines."""
        if _KEY_BEGIN.search(body):
            self._key_lines = 0 if _KEY_END.search(body) else _LONGEST_KEY
            return True
        if not self._key_lines:
            return False
        self._key_lines -= 1
        if _KEY_END.search(body):
            self._key_lines = 0
            return True
        return _KEY_LINE.search(body) is not None

    def _is_in_block(self, body: str) -> bool:
        """Return whether a line is of a text of several lines in YAML, whose name is a secret's."""
        if self._block >= 0 and (not body.strip() or len(body) - len(body.lstrip()) > self._block):
            return bool(body.strip())
        block = _BLOCK.fullmatch(body)
        self._block = len(block["indent"]) if block and _is_secret(block["name"], block["name"]) else -1
        return False

    def _json_line(self, body: str) -> str | None:
        """Return a line of JSON without secrets. Its texts are no lines of this file."""
        state = self._key_lines, self._name, self._block
        clean = self.json_text(body)
        self._key_lines, self._name, self._block = state
        return clean

    def _hide_values(self, text: str, head: re.Pattern[str], pattern: re.Pattern[str]) -> str:
        """Hide the values of secret names. A value that is kept can itself have a name and a value."""
        pieces, done, position = [], 0, 0
        while found := head.search(text, position):
            position = found.end()
            value = pattern.match(text, position)
            if value and _is_secret(found["name"], value[0].strip("\"'\\")):
                mark = value[0][0] if value[0][0] in "\"'" and value[0][-1] == value[0][0] else ""
                pieces += [text[done:position], mark, self._hide(), mark]
                done = position = value.end()
        return "".join([*pieces, text[done:]])

    def _hide(self, before: str = "") -> str:
        self.hidden += 1
        return before + HIDDEN


def _is_secret(name: str, value: str) -> bool:
    last = name.rpartition("/")[2].strip(".-")
    # A structure begins here, or it is done.
    if value in ("", "{", "[", "{}", "[]", "|", ">", HIDDEN) or _NO_SECRETS.fullmatch(last):
        return False
    if last.lower() == "pwd":
        return value[0] not in "/~.$"  # else it is the working directory
    # In a job's settings a value like `<x` is another program's reference; a password can begin so, too.
    return bool(_LONG_NAMES.search(last)) or is_secret_option(last, value.lstrip("`<%{") or value)


def _is_value(text: str) -> bool:
    """Return whether a line is a value, and no key of YAML."""
    return ": " not in text and not text.endswith(":")


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
