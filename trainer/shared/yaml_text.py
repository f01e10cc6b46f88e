"""Write YAML that every reader understands alike.

PyYAML quotes a text if PyYAML itself would read something else. Other readers, such as kubectl's, know further forms:
`1e3`, `0o17` and a hash like `0469839881768e80` are numbers to them, and `N` is false. So more texts need quotes.
"""

import json
import re
from typing import Any

import yaml

# A text without quotes begins like a word, an option or a path, or is a number with a unit: 16Gi, 10m. No YAML writes a
# number or a date with one of these units.
_PLAIN = re.compile(r"(--?)?[A-Za-z/][ -~]*|[0-9.]+[KMGmsh]i?")
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity"))
# What is not printable ASCII can be a line end in one version of YAML only (U+0085, U+2028).
_PRINTABLE = re.compile(r"[ -~]*")
# PyYAML can be built without libyaml, which takes a tenth of the time.
_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Base):  # type: ignore[misc]  # its base is chosen when the program runs
    pass


def _represent_text(dumper: Any, text: str) -> yaml.ScalarNode:
    style = None
    if not _PRINTABLE.fullmatch(text):
        style = '"'
    elif not _PLAIN.fullmatch(text) or text.lstrip("-").lower() in _WORDS:
        style = "'"
    node: yaml.ScalarNode = dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)
    return node


_Dumper.add_representer(str, _represent_text)


def to_yaml(value: Any) -> str:
    """Return a value of JSON's types as YAML, in the value's own order: the same value gives the same bytes."""
    try:
        text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    except UnicodeEncodeError:  # a path with bytes that are not UTF-8; JSON, which is YAML, has escapes for them
        return json.dumps(value, indent=2) + "\n"
    return text
