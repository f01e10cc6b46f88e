"""Weight files that do not describe themselves, inspected by their tensors: their source, and whether they are usable.

This needs torch, which the rest of an inspection does without.
"""

import dataclasses

from trainer.checkpoint.reading import Inspection, TensorInfo
from trainer.checkpoint.saver import DTYPES
from trainer.model.weight_files import import_weights
from trainer.shared.errors import UsageError


def inspect_published(inspection: Inspection) -> Inspection:
    """Return the inspection of a weight file with the source of its weights and what tells it.

    A safetensors file of another network stays valid; its description then says why it is of no use here.
    """
    path = inspection.path
    try:
        weights = import_weights(path)
    except UsageError as error:
        reason = str(error).removeprefix(f"weights {path}: ")
        if inspection.refused is not None:
            return dataclasses.replace(inspection, refused=reason)
        return dataclasses.replace(inspection, content={**inspection.content, "usable": f"no: {reason}"})
    description = {
        "source": weights.source,
        "told_by": weights.evidence,
        "model": weights.model,
        "padding": weights.padding,
        "num_classes": weights.num_classes,
        "data": None if weights.data is None else dataclasses.asdict(weights.data),
    }
    tensors = inspection.tensors or {
        name: TensorInfo(
            DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), tensor.numel() * tensor.itemsize, None
        )
        for name, tensor in weights.state_dict.items()
    }
    return dataclasses.replace(inspection, refused=None, content={**inspection.content, **description}, tensors=tensors)
