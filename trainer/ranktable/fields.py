"""Take one value out of a table's JSON, or refuse it with its path, its value and the rule it breaks.

With this apart, the code of each format reads like the format's documentation.
"""

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

from trainer.shared.errors import UsageError

Raw: TypeAlias = Any  # a result of json.loads; this module checks it value by value
_LENGTH_SHOWN = 80  # characters of a value in a message


def optional_ip(entry: Mapping[str, Raw], key: str, parent: str) -> str | None:
    """Return an address, or None if the key is missing or empty (old device plugins leave host_ip empty)."""
    if entry.get(key, "") == "":
        return None
    address = text_of(entry, key, parent)
    if not is_ip(address):
        refuse(path_of(parent, key), address, "is not an IP address")
    return address


def is_ip(address: str) -> bool:
    """Return whether it is an IPv4 or IPv6 address without a scope, which has no meaning on another host."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return "%" not in address


def check_count(entry: Mapping[str, Raw], key: str, parent: str, actual: int, of: str) -> None:
    """Refuse a count, written as a string, that differs from the entries it counts."""
    if number_of(entry, key, parent) != actual:
        refuse(path_of(parent, key), entry[key], f"is not the number of {of} entries, {actual}")


def number_of(entry: Mapping[str, Raw], key: str, parent: str) -> int:
    """Return a count or id of the versions that write numbers as strings; HCCL refuses a plain number there."""
    value = text_of(entry, key, parent)
    if not re.fullmatch(r"[0-9]{1,18}", value):
        refuse(path_of(parent, key), value, 'must be a number in quotes, like "0"')
    return int(value)


def whole_of(entry: Mapping[str, Raw], key: str, parent: str) -> int:
    """Return a count or id of version 2.0, which writes numbers as numbers."""
    value = _required(entry, key, parent)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        refuse(path_of(parent, key), value, "must be a number of at least 0, without quotes")
    return value


def text_of(entry: Mapping[str, Raw], key: str, parent: str) -> str:
    """Return a string that must exist; it can be empty."""
    value = _required(entry, key, parent)
    if not isinstance(value, str):
        refuse(path_of(parent, key), value, "must be a string")
    return value


def list_of(entry: Mapping[str, Raw], key: str, parent: str) -> list[Raw]:
    """Return a list that must exist and have at least one entry."""
    value = _required(entry, key, parent)
    if not isinstance(value, list) or not value:
        refuse(path_of(parent, key), value, "must be a list with at least one entry")
    return value


def object_of(value: Raw, parent: str) -> Mapping[str, Raw]:
    """Return `value` itself, if it is a JSON object."""
    if not isinstance(value, dict):
        refuse(parent, value, "must be a JSON object")
    return value


def path_of(parent: str, key: str) -> str:
    """Return the name of a field for a message: `server_list[0].device[1].rank_id`."""
    return f"{parent}.{key}" if parent else key


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


def _required(entry: Mapping[str, Raw], key: str, parent: str) -> Raw:
    if key not in entry:
        raise UsageError(f"{path_of(parent, key)} is missing")
    return entry[key]
