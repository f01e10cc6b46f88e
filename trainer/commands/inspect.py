"""`python -m trainer inspect`: show a checkpoint's or weight file's description, and whether its bytes are right.

It works without torch, so that it can be used next to a run, in a pod or on a laptop; it changes nothing. Only weights
of other programs need torch: their tensors tell whose they are.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from trainer.checkpoint.reading import Inspection, TensorInfo, find_checkpoints, inspect_path
from trainer.commands import AsJson
from trainer.shared.documents import document, json_text, to_json
from trainer.shared.errors import TrainerError
from trainer.shared.text import visible

_ROWS_PER_GROUP = 3
# The names of a thousand classes would fill a screen.
_LONGEST_VALUE = 160
_CONFIG_SHOWN = ("model", "padding", "aux", "image_size", "batch_size", "accumulate", "precision", "seed")

inspect_app = App(name="inspect")


@inspect_app.default
def inspect(
    path: Path,
    /,
    *,
    show_all: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    as_json: AsJson = False,
) -> None:
    """Show the content of a checkpoint or a weight file; exit code 1 if anything is damaged, 2 if it does not exist.

    Parameters
    ----------
    path
        A checkpoint, a run's folder (its newest valid checkpoint is shown), or a weight file.
    show_all
        List every tensor instead of the first of each group, as --json does.
    """
    inspections = [_with_source(inspect_path(place)) for place in find_checkpoints(path)]
    shown = next((inspection for inspection in inspections if inspection.refused is None), inspections[0])
    if as_json:
        print(json_text(_document(path, inspections, shown)))
    else:
        if len(inspections) > 1:
            print("\n".join(visible(_line(inspection)) for inspection in inspections) + "\n")
        print("\n".join(map(visible, _lines(shown, show_all=show_all))))
    refused = [inspection for inspection in inspections if inspection.refused is not None]
    if refused:
        others = f" ({len(refused)} of {len(inspections)} checkpoints are damaged)" if len(inspections) > 1 else ""
        action = "copy it again, or take another" if shown.refused else "--resume takes the newest valid one"
        # The reason to refuse another program's weights has its own next step.
        advice = "" if ";" in (refused[0].refused or "") else f"; {action}"
        raise TrainerError(f"{refused[0].path}: {refused[0].refused}{others}{advice}").after_document(as_json)


def _with_source(inspection: Inspection) -> Inspection:
    """Add whose weights they are, if the file is a weight file that does not say so."""
    is_whole_table = inspection.refused is None and "format_version" not in inspection.content
    is_other_format = not inspection.is_safetensors and inspection.bytes > 0
    if not inspection.path.is_file() or not (is_whole_table or is_other_format):
        return inspection
    if importlib.util.find_spec("torch") is None:
        return inspection
    from trainer.checkpoint.published import inspect_published  # noqa: PLC0415  # torch takes two seconds

    return inspect_published(inspection)


def _document(path: Path, inspections: Sequence[Inspection], shown: Inspection) -> dict[str, Any]:
    checkpoints = [
        {"path": str(inspection.path), "valid": not inspection.refused, "refused": inspection.refused}
        for inspection in inspections
    ]
    content = {name: to_json(getattr(shown, name)) for name in ("path", "saved", "bytes", "content", "tensors")}
    return document("Inspection", path=str(path), checkpoints=checkpoints, shown=content)


def _line(inspection: Inspection) -> str:
    return f"{inspection.path}  {'valid' if inspection.refused is None else f'refused: {inspection.refused}'}"


def _lines(shown: Inspection, *, show_all: bool) -> Iterator[str]:
    yield _line(shown)
    yield ""
    facts = list(_facts(shown))
    width = max(len(label) for label, _ in facts)
    for label, text in facts:
        yield f"{label:<{width}}  {text}"
    if shown.tensors:
        yield ""
        yield from _table(shown.tensors, show_all=show_all)


def _facts(shown: Inspection) -> Iterator[tuple[str, str]]:
    content = dict(shown.content)
    progress, config = _mapping(content.pop("progress", {})), _mapping(content.pop("config", {}))
    yield from _rows("run", content.pop("run", None))
    if shown.saved:
        yield "saved", shown.saved
    yield from _position(progress, epochs=config.get("epochs"))
    for key, value in content.items():
        yield from _rows(key.replace("_", " "), value)
    if config:
        part = {key: config[key] for key in _CONFIG_SHOWN if key in config}
        yield "config", f"{_words(part)} (all {len(config)}: --json)"
    yield "on disk", _size(shown.bytes)
    hashed = [tensor.valid for tensor in shown.tensors.values() if tensor.valid is not None]
    if hashed:
        yield "hashes", f"{sum(hashed)} of {len(hashed)} valid"
    elif shown.tensors and shown.refused is None:
        yield "hashes", "none in a weight file; its length is right"


def _position(progress: Mapping[str, Any], *, epochs: int | None) -> Iterator[tuple[str, str]]:
    """Yield the run's position and its scores; `trainer.training.progress.Progress` documents the values."""
    if not progress:
        return
    epoch = progress["epoch"]
    yield "step", f"{progress['global_step']:,}"
    if epochs is not None and epoch >= epochs:
        yield "epoch", f"all {epochs:,} done"
    else:
        done = (
            f"{_of(progress['step'], progress['steps'])} steps, {_of(progress['images'], progress['planned'])} images"
        )
        pending = ", its evaluation to come" if progress["equalised"] else ""
        yield "epoch", f"{_of(epoch, epochs)} done; of the next {done}{pending}"
    if progress["lr_factor"] != 1:
        yield "lr factor", _word(progress["lr_factor"])
    for name in ("best", "last"):
        if progress[name]:
            yield f"{name} score", _words(progress[name])
    yield "trained for", f"{progress['wall_s']:,.0f} s"


def _of(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"


def _table(tensors: Mapping[str, TensorInfo], *, show_all: bool) -> Iterator[str]:
    groups: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name.partition(".")[0], {})[name] = tensor
    for prefix, group in groups.items():
        count = f"{len(group):,} tensor{'' if len(group) == 1 else 's'}"
        yield f"{prefix}.  {count}, {_size(sum(tensor.bytes for tensor in group.values()))}"
        rows = [
            (name, tensor)
            for number, (name, tensor) in enumerate(group.items())
            if show_all or number < _ROWS_PER_GROUP or tensor.valid is False
        ]
        width = max(len(name) for name, _ in rows)
        for name, tensor in rows:
            shape = "x".join(map(str, tensor.shape)) or "scalar"
            verdict = {True: "valid", False: "wrong sha256", None: ""}[tensor.valid]
            yield f"  {name:<{width}}  {tensor.dtype:<4}  {shape:<14}  {verdict}".rstrip()
        if len(rows) < len(group):
            yield f"  and {len(group) - len(rows):,} more (--all)"


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _rows(label: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield a line for the plain values of a table and one for each table in it; skip absent and empty ones."""
    if not isinstance(value, Mapping):
        if value is not None:
            yield label, _word(value)
        return
    plain = {key: item for key, item in value.items() if item is not None and not isinstance(item, Mapping)}
    if plain:
        yield label, _words(plain)
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _rows(f"{label} {key}".replace("_", " "), item)


def _words(table: Mapping[str, Any]) -> str:
    """Return a table as words, such as `mode full, attempt 1`."""
    return ", ".join(f"{key} {_word(item)}" for key, item in table.items())


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} ... ({len(text):,} characters: --json)"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} byte{'' if count == 1 else 's'}"
