"""The parts of a worker before its first step: network, optimizer, watchdog, first line and `provenance.json`."""

import json
import os
import platform
from typing import Any

import torch
import torch.distributed as dist

from trainer.data.bad_images import BadImages
from trainer.data.index import Datasets
from trainer.devices.device import Device
from trainer.distributed.batch_norm import BatchStatistics
from trainer.distributed.gradients import FlatGradients
from trainer.distributed.process_group import data_parallel
from trainer.distributed.stop_requests import StopRequests
from trainer.distributed.watchdog import Watchdog
from trainer.model.pnasnet import build_model
from trainer.model.weight_files import Weights
from trainer.model.weights import load_weights
from trainer.records.folder import replace_config
from trainer.records.provenance import config_hash, installed_versions, source_revision
from trainer.records.run_records import Heartbeat, say
from trainer.seeds import derive_seed
from trainer.shared.attempts import attempt_file, timestamp
from trainer.shared.config import TrainConfig
from trainer.shared.container import memory_bytes
from trainer.shared.files import writing
from trainer.training.capture import CapturedStep
from trainer.training.comparison import StateComparison
from trainer.training.compiling import compile_network
from trainer.training.ema import Ema
from trainer.training.micro_batch import choose_micro_batch
from trainer.training.optimizer import begin_state, make_optimizer
from trainer.training.precision import choose_precision
from trainer.training.steps import Training
from trainer.training.time_split import StepClock
from trainer.worker.graph import captures_steps
from trainer.worker.proven import proof_of
from trainer.worker.task import WorkerTask

_PACKAGES = ("pnas", "torch", "torchvision", "torch-npu", "apex", "numpy", "pillow", "safetensors")


def make_watchdog(task: WorkerTask) -> Watchdog:
    """Return the worker's watchdog, not yet started."""
    return Watchdog(
        rank=task.rank,
        device=f"{task.device}:{task.local_rank}",
        world_size=task.world_size,
        timeout_s=task.config.stall_timeout_s,
        store_address=(os.environ["MASTER_ADDR"], task.master_port) if task.world_size > 1 else None,
    )


def build_training(
    task: WorkerTask,
    config: TrainConfig,
    runtime: Device,
    device: torch.device,
    *,
    weights: Weights | None,
    num_classes: int,
    watchdog: Watchdog,
    new_classifier: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Training:
    """Return the parts of the run on the device; every rank draws the same first weights."""
    torch.manual_seed(derive_seed(config.seed, "weights"))
    network = build_model(config, num_classes)
    if weights is not None:
        load_weights(network, weights, replace_head=new_classifier)
    if config.memory_format == "auto":
        config = config.model_copy(update={"memory_format": runtime.memory_format})
    network = network.to(device)
    if config.memory_format == "nhwc":
        network = network.to(memory_format=torch.channels_last)
    statistics = BatchStatistics(network)
    # Before the network is cast or patched: the average stays in fp32, where a small change is not rounded away.
    ema = Ema(network, config.ema) if config.ema else None
    proof = proof_of(task.run.parent, runtime)
    captured = captures_steps(task, config, runtime, proof, group)
    precision = choose_precision(config, runtime, captured=captured)
    optimizer = make_optimizer(
        network, config, device=runtime.kind, library=precision.optimizer_library, captured=captured
    )
    prepared = precision.prepare(network, optimizer)
    if config.compile:
        compile_network(prepared, device, watchdog)
    begin_state(optimizer, config)
    parallel = prepared if captured else data_parallel(prepared, device, bucket_mib=config.bucket_mib)
    clock = StepClock(runtime)
    if task.world_size > 1 and not captured:
        clock.mark_gradients(network)
    return Training(
        config=config,
        rank=task.rank,
        world_size=task.world_size,
        runtime=runtime,
        device=device,
        network=network,
        parallel=parallel,
        precision=precision,
        optimizer=optimizer,
        ema=ema,
        heartbeat=Heartbeat(),
        clock=clock,
        statistics=statistics,
        group=group,
        requests=StopRequests(group),
        watchdog=watchdog,
        comparison=StateComparison(
            network, optimizer, ema, statistics, every=config.compare_every, rank=task.rank, world_size=task.world_size
        ),
        bad_images=BadImages(),
        proof=proof,
        captured=CapturedStep(runtime, device, FlatGradients(network.parameters())) if captured else None,
        micro_batch=choose_micro_batch(
            config, device=runtime.kind, processes=task.local_world_size, memory_bytes=memory_bytes()
        ),
    )


def blank_images(training: Training) -> torch.Tensor:
    """Return images for the warm-up of DDP: on a CPU as few as batch norm takes, elsewhere a whole micro-batch.

    An accelerator, or a compiler, then has its kernels for the sizes of the first step.
    """
    few = training.device.type == "cpu" and not training.config.compile
    side, count = training.config.image_size, 2 if few else training.micro_batch
    images = torch.zeros(count, 3, side, side, device=training.device)
    return images.to(memory_format=torch.channels_last) if training.config.memory_format == "nhwc" else images


def say_start(task: WorkerTask, training: Training, datasets: Datasets) -> None:
    """Print the line that a run's log begins with."""
    config = training.config
    say(
        "start",
        mode=config.mode,
        model=config.model,
        device=training.runtime.name(),
        precision=training.precision.name,
        graph=None if training.captured is None else "on",
        compile="on" if config.compile else None,
        padding=config.padding,
        image_size=config.image_size,
        normalize=config.normalize,
        world_size=task.world_size,
        batch_size=config.batch_size,
        micro_batch=training.micro_batch if training.micro_batch < config.batch_size else None,
        classes=len(datasets.classes),
        train_images=len(datasets.train) if datasets.train is not None else 0,
        val_images=len(datasets.val),
        attempt=task.attempt if task.attempt > 1 else None,
    )


def write_provenance(
    task: WorkerTask, config: TrainConfig, training: Training, datasets: Datasets, started_at: float
) -> None:
    """Write `provenance.json`, what a result of this attempt rests on, and bring `config.yaml` up to what runs.

    Raises:
        TrainerError: the file cannot be written.
    """
    config, runtime, proof = _what_runs(task, config), training.runtime, training.proof
    replace_config(task.run, config, attempt=task.attempt)
    values = {
        "command": task.command,
        "config": config.model_dump(mode="json"),
        "config_sha256": config_hash(config),
        "data_fingerprint": datasets.fingerprint,
        "device": {
            "kind": runtime.kind,
            "name": runtime.name(),
            "backend": runtime.backend,
            "rounds_fp32": runtime.rounds_fp32(),
        },
        "host": platform.node(),
        "platform": platform.platform(),
        "proof": None if proof.problem else {"record": str(proof.folder), "sha256": proof.sha256},
        "python": platform.python_version(),
        "revision": source_revision(),
        "started": timestamp(started_at),
        "threads": torch.get_num_threads(),
        "versions": installed_versions(_PACKAGES),
        "world_size": task.world_size,
    }
    path = attempt_file(task.run / "provenance.json", task.attempt)
    with writing(path):
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _what_runs(task: WorkerTask, config: TrainConfig) -> TrainConfig:
    """Return the settings with the devices that the run has, so that the same settings are the same run elsewhere.

    The supervisor wrote config.yaml before a process knew them, and the settings that weights bring along.
    """
    devices: dict[str, Any] = {}
    if config.device == "auto":
        devices["device"] = task.device
    if config.npus is None and task.local_world_size == task.world_size:
        devices["npus"] = task.world_size
    return config.model_copy(update=devices)
