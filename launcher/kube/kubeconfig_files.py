"""Kubeconfig files: of several, the first that names a thing counts, and its relative paths begin at its folder.

The rules are kubectl's (k8s.io/client-go/tools/clientcmd). Values are read as the texts that they are: a token 0123 is
no number.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import RequestError, UnreachableError
from trainer.shared.files import read_file, with_home
from trainer.shared.strict_yaml import parse_texts


@dataclass(frozen=True)
class ConfigEntry:
    """A cluster, a user or a context, and the folder at which its relative paths begin."""

    values: Mapping[str, Any]
    folder: Path

    def text(self, key: str) -> str:
        """Return a value as text; empty without one."""
        value = self.values.get(key)
        return "" if value is None else str(value)

    def path(self, key: str) -> Path | None:
        """Return the path that a value names; None without one."""
        text = self.text(key)
        return self.folder / text if text else None

    def switch(self, key: str) -> bool:
        """Return whether a value is true."""
        return self.text(key).lower() == "true"

    def part(self, key: str) -> Mapping[str, Any] | None:
        """Return a value that is a mapping; None without one."""
        value = self.values.get(key)
        return value if isinstance(value, dict) and value else None


@dataclass(frozen=True)
class ClusterContext:
    """A context with its cluster and its user; without a user, requests are anonymous."""

    name: str
    namespace: str
    cluster: ConfigEntry
    user: ConfigEntry


def read_context(paths: str, name: str | None) -> ClusterContext:
    """Return the named context of the files, or their current one.

    Args:
        paths: As in KUBECONFIG, with a colon between two files. A file that does not exist is left out.

    Raises:
        RequestError: no context has this name.
        UnreachableError: the files do not say which cluster, or cannot be read.
    """
    files = [path for text in paths.split(os.pathsep) if text and (path := with_home(Path(text))).exists()]
    if not files:
        raise UnreachableError(f"kubeconfig {paths}: no such file; give --kubeconfig or set KUBECONFIG")
    documents = [ConfigEntry(_read(file), file.parent.absolute()) for file in files]
    contexts = _entries(documents, "contexts", paths)
    chosen = name or next((text for document in documents if (text := document.text("current-context"))), None)
    context = contexts.get(chosen) if chosen is not None else None
    known = ", ".join(contexts) or "none"
    if context is None and name is not None:
        raise RequestError(f"--context {name}: not in kubeconfig {paths}, which has {known}")
    if context is None or chosen is None:
        reason = f"its current context `{chosen}` does not exist" if chosen else "no context is chosen"
        raise UnreachableError(f"kubeconfig {paths}: {reason}; give --context; the file has {known}")
    cluster, user = (
        _referenced(context, key, _entries(documents, f"{key}s", paths), f"kubeconfig {paths}: context {chosen}")
        for key in ("cluster", "user")
    )
    if cluster is None:
        raise UnreachableError(f"kubeconfig {paths}: context {chosen} names no cluster; fix it or give --context")
    anonymous = ConfigEntry({}, context.folder)
    return ClusterContext(chosen, context.text("namespace") or "default", cluster, user or anonymous)


def _read(file: Path) -> Mapping[str, Any]:
    place = f"kubeconfig {file}"
    try:
        # A text editor may have put a byte order mark before the text.
        value = parse_texts(read_file(file).decode("utf-8-sig"))
    except OSError as error:
        raise UnreachableError(f"{place}: cannot be read: {error.strerror}; fix it or give --kubeconfig") from error
    except ValueError as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UnreachableError(f"{place}: cannot be read: {reason}; fix it or give --kubeconfig") from error
    if value is not None and not isinstance(value, dict):
        raise UnreachableError(f"{place}: is no kubeconfig: not a mapping; fix it or give --kubeconfig")
    return value or {}


def _entries(documents: Sequence[ConfigEntry], key: str, paths: str) -> Mapping[str, ConfigEntry]:
    """Return the entries of all files by name; of several with one name, the first."""
    named: dict[str, ConfigEntry] = {}
    for document in documents:
        for name, values in _items(document.values.get(key), key, paths):
            named.setdefault(name, ConfigEntry(values, document.folder))
    return named


def _items(value: Any, key: str, paths: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for item in [] if value is None else value if isinstance(value, list) else [value]:
        if not isinstance(item, dict) or item.get("name") is None:
            raise UnreachableError(f"kubeconfig {paths}: {key} must be a list of entries with a name; fix it")
        values = item.get(key.removesuffix("s"))
        if values is not None and not isinstance(values, dict):
            raise UnreachableError(f"kubeconfig {paths}: {key}: `{item['name']}` is not a mapping; fix it")
        yield str(item["name"]), values or {}


def _referenced(context: ConfigEntry, key: str, entries: Mapping[str, ConfigEntry], place: str) -> ConfigEntry | None:
    """Return the entry that the context names; None if it names none."""
    name = context.text(key)
    if not name:
        return None
    if name not in entries:
        known = ", ".join(entries) or "none"
        raise UnreachableError(f"{place}: there is no {key} `{name}`; fix it or give --context; the file has {known}")
    return entries[name]
