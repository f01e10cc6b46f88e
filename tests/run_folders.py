"""Folders as runs leave them, for tests of what the launcher makes of them; small, and without torch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEPS = 40
"""Steps of an epoch."""


def write_run(
    folder: Path,
    *,
    epochs: int = 3,
    lr: float = 0.1,
    attempts: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] = {},
    rows: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write a run of `epochs` epochs.

    Args:
        attempts: the records of its attempts.
        settings: differ from the usual ones.
        rows: more rows of metrics.jsonl.
    """
    folder.mkdir(parents=True)
    config = {"mode": "full", "model": "pnasnet5tiny", "epochs": epochs, "lr": lr, "batch_size": 32, "weights": None}
    config |= settings
    provenance = {
        "command": ["python", "-m", "trainer", "--lr", str(lr)],
        "config": config,
        "data_fingerprint": "d" * 64,
        "device": {"kind": "npu", "name": "Ascend910A", "backend": "hccl"},
        "host": "node1",
        "versions": {"torch": "2.14.1", "torch_npu": "2.9.0"},
        "world_size": 8,
    }
    (folder / "config.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items()))
    (folder / "provenance.json").write_text(json.dumps(provenance))
    for record in attempts:
        number = record["attempt"]
        name = "attempt.json" if number == 1 else f"attempt-{number}.json"
        (folder / name).write_text(json.dumps(record))
    metrics = [row for epoch in range(epochs) for row in _epoch_rows(epoch, epochs * STEPS, lr)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*metrics, *rows)))
    return folder


def _epoch_rows(epoch: int, total: int, lr: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(STEPS):
        done = epoch * STEPS + step
        rate = lr * (1 + math.cos(math.pi * done / total)) / 2
        loss = 6.9 * math.exp(-3 * done / total) + 0.4 + 0.2 * math.sin(done * 1.7)
        rows.append(
            {"kind": "step", "epoch": epoch, "step": step, "global_step": done, "loss": round(loss, 5), "lr": rate}
        )
        if step % 10 == 9:
            time, fps = f"2026-11-30T{10 + done // 60 % 12:02}:{done % 60:02}:00Z", 2800 + 90 * math.sin(done)
            top1 = round(90 * (1 - math.exp(-3 * done / total)), 2)
            rows.append({"kind": "progress", "time": time, "global_step": done, "fps": fps, "top1": top1})
    top1 = round(88 * (1 - math.exp(-3 * (epoch + 1) * STEPS / total)), 3)
    score = {"top1": top1, "top5": min(100.0, top1 + 9), "loss": 7 * math.exp(-3 * (epoch + 1) * STEPS / total) + 0.5}
    return [*rows, {"kind": "eval", "epoch": epoch, **score, "images": 50_000, "time": "2026-11-30T12:00:00Z"}]


LOST = 'cause="killed without a word (out of memory, or its pod or node is gone)"'
ATTEMPTS: Sequence[Mapping[str, Any]] = (
    {
        "attempt": 1,
        "host": "pnas-full-0",
        "node": "npu-node-17",
        "nodes": 1,
        "started": "2026-11-30T10:00:00Z",
        "checkpoint": None,
        "ended": "2026-11-30T10:40:00Z",
        "steps": 45,
        "outcome": "failed",
        "exit_code": 1,
        "cause": 'rank=3 device=npu:3 cause="killed by SIGSEGV"',
    },
    {
        "attempt": 2,
        "host": "pnas-full-1",
        "node": "npu-node-18",
        "nodes": 1,
        "started": "2026-11-30T10:42:05Z",
        "checkpoint": "checkpoints/step-000000040",
        "gap_s": 125,
        "steps_before": 45,
        "ended": "2026-11-30T12:00:00Z",
        "steps": 120,
        "outcome": "succeeded",
        "exit_code": 0,
        "cause": None,
    },
)
"""One attempt that failed, and one that continued it to the end."""
