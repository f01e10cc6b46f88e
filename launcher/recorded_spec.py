"""A recorded JobSpec as plain values: on this machine in a file, on a cluster in an annotation, which users can edit.

A record of an older version can still be shown. Commands that read jobs do without pydantic.
"""

from collections.abc import Collection, Mapping
from typing import Any

from trainer.shared.runs import WEIGHT_SETTINGS

_Types = Mapping[str, type | tuple[type, ...]]
_NONE = type(None)
# What is read of a record. A value of another type is damage: one such job must not hide all others.
_PARTS: _Types = {"train": dict, "pods": dict, "overlay": dict, "given": list, "backend": str, "origins": dict}
_SETTINGS: _Types = {
    **dict.fromkeys(("npus", "nodes"), (int, _NONE)),
    **dict.fromkeys(("mode", "model", "device", "weights", "output"), (str, _NONE)),
    "grace_s": (int, float, _NONE),
}


def is_spec(value: object) -> bool:
    """Return whether a value can be a recorded JobSpec: the known parts that it has are of their types."""
    if not isinstance(value, dict) or not _fits(value, _PARTS) or not _fits(value.get("train", {}), _SETTINGS):
        return False
    return all(isinstance(name, str) for name in value.get("given", ()))


def _fits(values: Mapping[str, Any], types: _Types) -> bool:
    return all(isinstance(values[name], kind) for name, kind in types.items() if name in values)


def describe_network(train: Mapping[str, Any], given: Collection[str]) -> str:
    """Return the model and the image size of a job's settings, such as `pnasnet5large at 331 px`, or its checks.

    Settings that are not in `given` come from the job's weights, which the launcher does not read.
    """
    if train.get("mode") == "prove":
        return str(train.get("checks") or "all checks").replace(",", " ")
    from_weights = train.get("weights") is not None
    model = "the weights' model" if from_weights and "model" not in given else train.get("model")
    size = "their image size" if from_weights and "image_size" not in given else f"{train.get('image_size')} px"
    return f"{model} at {size}"


def known_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded JobSpec without the defaults of settings that the weights bring along: they did not count."""
    train: Mapping[str, Any] = spec.get("train", {})
    if not train.get("weights"):
        return dict(spec)
    given = spec.get("given", ())
    settings = {name: value for name, value in train.items() if name in given or name not in WEIGHT_SETTINGS}
    return {**spec, "train": settings}
