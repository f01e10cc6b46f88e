"""A resumed run keeps its devices and threads, as far as this machine has them and the user asks for no others.

They decide the bits of the result, and the number of devices decides the global batch too. They must be known before
the workers are counted, so they are read from the newest checkpoint before the run's lock is held.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trainer.checkpoint.manifest import BadCheckpointError
from trainer.checkpoint.reading import list_checkpoints, read_manifest
from trainer.run.resume import find_source
from trainer.shared.config import EMULATED, Layer, TrainConfig, resolve_train_config
from trainer.shared.config.train import EMULATED_MACHINE
from trainer.shared.container import usable_processors
from trainer.shared.runs import CHECKPOINTS_FOLDER, TRAINING
from trainer.topology import follows_options, visible_devices

NOTHING_KEPT = Layer("checkpoint", {})


def keep_devices(layers: Sequence[Layer], environ: Mapping[str, str], on_note: Callable[[str], None]) -> Layer:
    """Return the devices and threads of the run that `layers`, the user's settings, resume.

    Args:
        on_note: Called with a line for the user if this machine lacks some.

    Raises:
        UsageError: The run to resume cannot be found.
        FolderTakenError: Its folder is a training run's, and `--mode` does not train.
    """
    config, origins = resolve_train_config(layers, partial=True)
    source = find_source(config, output_given=origins["output"] != "default")
    if source is None or config.mode not in TRAINING or config.nodes > 1 or not follows_options(config, environ):
        return NOTHING_KEPT
    folder = source.run / CHECKPOINTS_FOLDER
    for checkpoint in [source.checkpoint] if source.checkpoint is not None else list_checkpoints(folder):
        try:
            content = read_manifest(checkpoint).content
        except BadCheckpointError:
            continue
        return Layer(f"checkpoint {checkpoint.name}", dict(_settings(content, config, environ, on_note)))
    return NOTHING_KEPT


def _settings(
    content: Mapping[str, Any], config: TrainConfig, environ: Mapping[str, str], on_note: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """Yield the device, the number of devices and the threads that the checkpoint has and this machine too."""
    match content:
        case {
            "arithmetic": {"device": "npu" | "cuda" | "cpu" as kind, "world_size": int(count), "threads": int(threads)},
            "config": saved,
        }:
            emulated = saved.get("device") == EMULATED and EMULATED_MACHINE.is_file()
        case _:
            return
    name = EMULATED if emulated else kind
    if saved.get("nodes", 1) != 1 or config.device not in ("auto", name):
        return
    present = count if emulated or kind == "cpu" else len(visible_devices(kind, environ).ids)
    if present:
        yield "device", name
    # With another number of devices, other threads are no loss.
    if config.npus not in (None, count):
        return
    if count > present:
        on_note(f"resume: the run had {count} {kind} devices, and this machine has {present}")
        return
    yield "npus", count
    if threads <= (processors := usable_processors()):
        yield "threads", threads
    elif config.threads is None:
        on_note(f"resume: the run had {threads} threads per device, and this machine has {processors} processors")
