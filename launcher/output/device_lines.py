"""One line per device, never two: the columns that fit the terminal, and of a column no more than it needs. Pure.

`epoch 4/10  ████░░░░  44/88  loss 0.31  lr 0.06  91.4 images/s  top1 97.2`: what matters least goes first when it gets
narrow.
"""

from collections.abc import Mapping, Sequence

from launcher.output.progress import Event

_BAR_WIDTH = 16
_BLOCKS, _SIGNS = ("█", "░"), ("#", "-")
# What a narrow terminal does without, in this order; fields that are not known here go before them.
_DROPPED = ("lr", "bar", "top1", "epoch", "fps", "loss", "step")


def device_lines(devices: Mapping[str, Event | str], width: int, *, ascii_only: bool = False) -> list[str]:
    """The lines of all devices, aligned and at most `width` columns wide.

    Args:
        devices: for each device's label its latest step, or what it said last while it has made no step.
        ascii_only: the terminal has no letters but ASCII's.
    """
    steps = {
        label: step_cells(step, ascii_only=ascii_only) for label, step in devices.items() if isinstance(step, Event)
    }
    names = _fitting([{"label": label, **cells} for label, cells in steps.items()], width)
    label_width = max(map(len, devices), default=0)
    lines = []
    for label, latest in devices.items():
        cells = [latest] if isinstance(latest, str) else [_padded(steps, label, name) for name in names]
        lines.append("  ".join([label.ljust(label_width), *cells]).rstrip()[:width])
    return lines


def step_cells(step: Event, *, ascii_only: bool = False) -> dict[str, str]:
    """The columns of a device's line by their names. Epochs count from 1 here, as people do."""
    fields = {name: step.number(name) for name in step.fields}
    epoch, epochs, done, steps = (fields.pop(name, None) for name in ("epoch", "epochs", "step", "steps"))
    cells: dict[str, str] = {}
    if epoch is not None:
        cells["epoch"] = f"epoch {epoch + 1:.0f}" + ("" if epochs is None else f"/{epochs:.0f}")
    if done is not None and steps:
        full, empty = _SIGNS if ascii_only else _BLOCKS
        filled = round(_BAR_WIDTH * min(done / steps, 1))
        cells["bar"] = full * filled + empty * (_BAR_WIDTH - filled)
        cells["step"] = f"{done:.0f}/{steps:.0f}"
    for name, value in fields.items():
        shown = step.fields[name] if value is None else f"{value:.4g}"
        cells[name] = f"{shown} images/s" if name == "fps" else f"{name} {shown}"
    return cells


def _fitting(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """The names of the columns to show, without `label`."""
    widths: dict[str, int] = {}
    for row in rows:
        for name, text in row.items():
            widths[name] = max(widths.get(name, 0), len(text))
    known = ("label", *_DROPPED)
    dropped = [
        *(name for name in reversed(widths) if name not in known),
        *(name for name in _DROPPED if name in widths),
    ]
    while dropped and sum(widths.values()) + 2 * (len(widths) - 1) > width:
        del widths[dropped.pop(0)]
    return [name for name in widths if name != "label"]


def _padded(steps: Mapping[str, Mapping[str, str]], label: str, name: str) -> str:
    return steps[label].get(name, "").ljust(max(len(cells.get(name, "")) for cells in steps.values()))
