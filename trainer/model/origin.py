"""The origin of published weights, by what tells origins apart: an auxiliary head, the classes, keys next to the table.

Weights are wrong with another origin's borders or pixels, and nothing in the figures shows why. timm's and Cadene's
tensors have the same names and shapes, borders and pixels. The seed's have an auxiliary head, which its scripts always
train, in another place than TensorFlow's. A prefix such as `module.` alone tells nothing: every program's DDP adds it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from trainer.model.pnasnet import SCALES, STAGES
from trainer.shared.text import visible

Origin = Literal["pnas", "timm", "cadene", "seed", "unknown"]

BACKGROUND_CLASSES = 1001
"""ImageNet's classes and TensorFlow's background class, which is row 0 of Cadene's published file."""
AUX = "aux."
CLASSIFIER = "last_linear.weight"
# The text before this tensor's name is the prefix of all names of its network.
_ANCHOR = "cell_stem_0.conv_1x1.conv.weight"
# imagenet_fast.py, save_checkpoint: its names for accuracies; PyTorch's example has best_acc1.
_SEED_KEYS = frozenset({"acc", "best_acc"})
_DEEPEST = 4


@dataclass(frozen=True)
class TensorTable:
    """A network's tensors as a file holds them.

    Attributes:
        tensors: by the names that PNASNet5 uses, without a prefix.
        place: the keys that lead to it and the prefix of its names, such as `state_dict module.`; empty if neither.
        keys: the keys next to the table's.
    """

    tensors: Mapping[str, object]
    place: str
    keys: frozenset[str]


def find_tables(content: object) -> list[TensorTable]:
    """Return every PNASNet-5 in the nested tables of a file, in whatever wrapper and under whatever prefix."""
    return list(_tables(content, (), frozenset(), set()))


def preferred(tables: Sequence[TensorTable]) -> TensorTable | None:
    """Return the table to evaluate: the only one, or the only moving average; None if nothing tells."""
    averages = [table for table in tables if "ema" in re.split(r"[._ ]", table.place)]
    return next((choice[0] for choice in (tables, averages) if len(choice) == 1), None)


def find_origin(tensors: Mapping[str, Tensor], table: TensorTable) -> tuple[Origin, str]:
    """Return the origin of published tensors, and what tells it, or why nothing does."""
    has_seed_keys = table.keys >= _SEED_KEYS
    if any(name.startswith(AUX) for name in tensors):
        return _by_head(tensors, from_ddp="module." in table.place, has_seed_keys=has_seed_keys)
    if has_seed_keys:
        return "unknown", "keys of the seed's program, but no auxiliary head"
    if len(tensors[CLASSIFIER]) == BACKGROUND_CLASSES:
        return "cadene", "no auxiliary head, 1001 classes"
    return "timm", "no auxiliary head"


def scale_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the `--model` whose width and depth the tensors have; None if no scale has them."""
    cells = len({name.partition(".")[0] for name in tensors if re.match(r"cell_\d", name)})
    measures = (len(tensors["conv_0.conv.weight"]), tensors[CLASSIFIER].shape[1], cells)
    for scale in SCALES.values():
        if measures == (scale.stem, scale.channels(STAGES - 1), STAGES * scale.cells):
            return scale.name
    return None


def _tables(content: object, path: tuple[str, ...], keys: frozenset[str], visited: set[int]) -> Iterator[TensorTable]:
    # A table can stand in several places, and even in itself.
    if not isinstance(content, Mapping) or len(path) > _DEEPEST or id(content) in visited:
        return
    visited.add(id(content))
    names = [name for name in content if isinstance(name, str)]
    anchors = [name.removesuffix(_ANCHOR) for name in names if name.endswith(_ANCHOR)]
    prefixes = [prefix for prefix in anchors if not prefix or prefix.endswith(".")]
    for prefix in prefixes:
        # One network's prefix can begin with another's: "model." and "model.ema.".
        others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = [name for name in names if name.startswith(prefix) and not name.startswith(others)]
        tensors = {name.removeprefix(prefix): content[name] for name in own}
        yield TensorTable(tensors, visible(" ".join(filter(None, (*path, prefix)))), keys)
    for name in names:
        yield from _tables(content[name], (*path, name), frozenset(map(str, content)), visited)


def _by_head(tensors: Mapping[str, Tensor], *, from_ddp: bool, has_seed_keys: bool) -> tuple[Origin, str]:
    first, second = (tensors.get(f"{AUX}features.{number}.weight") for number in (2, 5))
    # The seed's head reads the third stage's maps, which the classifier reads too; TensorFlow's reads the second's.
    width = tensors[CLASSIFIER].shape[1]
    if first is None or second is None or (first.shape[1:2], second.shape[2:]) != ((width,), (3, 3)):
        return "unknown", "an auxiliary head, not at the seed's place"
    if not (from_ddp or has_seed_keys):
        return "unknown", "the seed's auxiliary head, which our own weights can have too"
    return "seed", f"the seed's auxiliary head, {'saved from DDP' if from_ddp else 'and keys of its program'}"
