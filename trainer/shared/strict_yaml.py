"""Read YAML that a user wrote, so that nothing in it is guessed, lost or endless.

YAML 1.1 reads `010` as 8, `1:30` as 90, `on` as true and `2024-11-01` as a date, and lets the last of two equal keys
win. A setting in a file must mean what the same text means on the command line, so here a plain value is its text.
"""

from collections.abc import Hashable
from typing import Any

import yaml

_DEEPEST = 100
_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, and nesting that no settings have."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {_DEEPEST} levels of nesting", problem_mark=self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == _MERGE or not isinstance(key, yaml.ScalarNode):
                continue
            if (name := self.construct_object(key)) in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"`{key.value}` is given twice, first in line {lines[name]}", problem_mark=key.start_mark
                )
            lines[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


class _TextLoader(_StrictLoader):
    """Reads each plain value as its text, except an absent one: null, ~ or nothing."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's way to choose them
        letter: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _MERGE)]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_texts(text: str) -> Any:
    """Read YAML whose plain values are texts.

    Raises:
        ValueError: The text is not valid YAML, has a key twice in one mapping, or is nested too deep.
    """
    return _parse(text, _TextLoader)


def parse_document(text: str) -> Any:
    """Read YAML whose plain values have their types, like a part of a Kubernetes object.

    Raises:
        ValueError: As `parse_texts`.
    """
    return _parse(text, _StrictLoader)


def _parse(text: str, loader: type[_StrictLoader]) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:  # an impossible date raises ValueError
        raise ValueError(_problem(error)) from error


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        # Without the text of the line, which can be a secret.
        reason = error.problem if error.context is None else f"not valid YAML: {error.context}: {error.problem}"
        return f"line {error.problem_mark.line + 1}: {reason}"
    return f"not valid YAML: {' '.join(str(error).split())}"
