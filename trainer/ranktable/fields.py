"""Take one value out of a table's JSON, or refuse it with its path, its value and the rule it breaks.

These checks are here so that the code of each format reads like the format's documentation.
"""

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from trainer.shared.errors import UsageError

Raw: TypeAlias = Any  # a result of json.loads; this module checks it value by value
_LENGTH_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class Entry:
    """One JSON object of a table. Its methods take a value out of it, or refuse it.

    Attributes:
        path: Its name for messages, such as `server_list[0].device[1]`; empty for the whole table.
    """

    values: Mapping[str, Raw]
    path: str

    @classmethod
    def of(cls, value: Raw, path: str) -> "Entry":
        """Return the entry of a value that must be a JSON object."""
        if not isinstance(value, dict):
            refuse(path or "the table", value, "must be a JSON object")
        return cls(value, path)

    def text(self, key: str) -> str:
        """Return a string that must exist; it can be empty."""
        value = self._required(key)
        if not isinstance(value, str):
            self.refuse(key, "must be a string")
        return value

    def number(self, key: str) -> int:
        """Return a count or id of the versions that write numbers as strings; HCCL refuses a plain number there."""
        value = self.text(key)
        if not re.fullmatch(r"0|[1-9][0-9]{0,17}", value):
            self.refuse(key, 'must be a number in quotes, like "0"')
        return int(value)

    def whole(self, key: str) -> int:
        """Return a count or id of version 2.0, which writes numbers as numbers."""
        value = self._required(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.refuse(key, "must be a number of at least 0, without quotes")
        return value

    def optional_ip(self, key: str) -> str | None:
        """Return an address, or None if the key is missing or empty (old device plugins leave host_ip empty)."""
        if self.values.get(key, "") == "":
            return None
        address = self.text(key)
        if not is_ip(address):
            self.refuse(key, "is not an IP address")
        return address

    def entries(self, key: str) -> "list[Entry]":
        """Return the objects of a list that must exist and have at least one."""
        value = self._required(key)
        if not isinstance(value, list) or not value:
            self.refuse(key, "must be a list with at least one entry")
        return [Entry.of(item, f"{self._path_of(key)}[{number}]") for number, item in enumerate(value)]

    def check_count(self, key: str, actual: int, of: str) -> None:
        """Refuse a count, written as a string, that differs from the entries it counts."""
        if self.number(key) != actual:
            self.refuse(key, f"is not the number of {of} entries, {actual}")

    def refuse(self, key: str, rule: str) -> NoReturn:
        """Raise a UsageError: the value of `key` breaks `rule`."""
        refuse(self._path_of(key), self.values[key], rule)

    def _path_of(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _required(self, key: str) -> Raw:
        if key not in self.values:
            raise UsageError(f"{self._path_of(key)} is missing")
        return self.values[key]


def is_ip(address: str) -> bool:
    """Return whether it is an IPv4 or IPv6 address without a scope: a scope has no meaning on another host."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return "%" not in address


def refuse(field: str, value: object, rule: str) -> NoReturn:
    """Raise a UsageError: `field` holds `value`, which breaks `rule`."""
    raise UsageError(
        f"{field} is {quote(value)}: {rule}" if rule.startswith("must") else f"{field} {quote(value)} {rule}"
    )


def quote_if_needed(name: str) -> str:
    """Return a short printable name as it is, and any other quoted."""
    return name if name.isprintable() and len(name) <= _LENGTH_SHOWN else quote(name)


def quote(value: object) -> str:
    """Return a value as JSON on one line; cut it if it is long."""
    try:
        text = json.dumps(value, default=str)
    except RecursionError:  # nested so deep that json.loads could just read it
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LENGTH_SHOWN else text[: _LENGTH_SHOWN - 3] + "..."
