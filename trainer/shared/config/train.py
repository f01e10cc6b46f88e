"""TrainConfig: every option of the trainer with its type, default, unit and reason, and the presets of the four modes.

The defaults are the seed's recipe as its scripts ran it, not as its README describes it: no normalisation, no label
smoothing, no drop-path, learning rate 0.4 stepped once per epoch. `profiles/recommended.yaml` is the recipe to prefer.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

import trainer
from trainer.shared import variables
from trainer.shared.config.layers import PARTIAL, ConfigError, Layer, environment_layer, profile_layer, resolve
from trainer.shared.durations import LONGEST_S, Interval
from trainer.shared.runs import TRAINING

Mode = Literal["full", "performance", "finetune", "eval", "prove"]
EMULATED: Final = "npu-emulated"
EMULATED_MACHINE = Path(trainer.__file__).resolve().parents[1] / "tests" / "npu" / "machine.py"

MODE_PRESETS: dict[str, dict[str, Any]] = {
    "full": {"epochs": 90},
    "performance": {"epochs": 1, "steps": 1000, "warmup_steps": 10},
    # The seed finetunes in epoch 90 of 91, where its cosine is at 0.0003 of the base rate 0.4.
    "finetune": {"epochs": 1, "lr": 0.000119},
    "eval": {"epochs": 0},
    "prove": {"epochs": 0},
}


def option(default: Any, text: str, *, group: str, **constraints: Any) -> Any:
    """Declare a setting: its default, one line of text, the help page's group, and pydantic's constraints."""
    return Field(default, description=text, json_schema_extra={"group": group}, **constraints)


_in_run = partial(option, group="Run")
_in_checkpoints = partial(option, group="Checkpoints")
_in_model = partial(option, group="Model")
_in_data = partial(option, group="Data")
_in_optimisation = partial(option, group="Optimisation")
_in_devices = partial(option, group="Devices")


_ABSENT = frozenset(("none", "null", "~"))


def is_absent(value: object) -> bool:
    """Return whether a layer's value unsets a setting: None, `none`, or YAML's null as a text."""
    return value is None or (isinstance(value, str | Path) and str(value).lower() in _ABSENT)


def _absent(value: object) -> object:
    return None if is_absent(value) else value


Optional = BeforeValidator(_absent)


class TrainConfig(BaseModel):
    """All settings of a run. It is frozen: a run never changes its own settings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        # The chart's values and records hold numbers where a profile has texts.
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )

    mode: Mode = _in_run(
        "full", "Task: full training, timed steps, training that starts from weights, evaluation, or checks of devices."
    )
    checks: Annotated[str | None, Optional] = _in_run(
        None, "Checks of --mode prove: names with commas between them. [default: all]"
    )
    tune: bool = _in_run(
        False, "With --mode prove, also look for the settings with which a step is fastest on a node; takes hours."
    )
    data_path: Path = _in_run(Path("/data"), "Folder with train/ and val/, one sub-folder per class; or a pack of one.")
    output: Path = _in_run(Path("output"), "Folder that gets one sub-folder per run.")
    run_name: Annotated[str | None, Optional] = _in_run(
        None, "Name of the run's folder. [default: mode, model and time]", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
    )
    seed: int = _in_run(0, "Seed of every random draw.", ge=0, lt=2**31)
    log_interval: int = _in_run(10, "Steps between progress lines.", ge=1)
    metrics_port: Annotated[int | None, Optional] = _in_run(
        None, "Port of each node that serves progress and hardware to Prometheus. [default: none]", ge=1, le=65535
    )

    resume: Annotated[Literal["auto"] | Path | None, Optional] = _in_checkpoints(
        None, "Continue a run: auto (the named run, from its newest valid checkpoint), its folder, or one checkpoint."
    )
    checkpoint_every: str = _in_checkpoints(
        "10m", "Steps (500) or time (10m) between checkpoints; one is also saved after each epoch."
    )
    snapshot_every: str = _in_checkpoints(
        "auto",
        "Most steps (50) that a crashed run repeats, by copies in memory, or time (30s) between the copies; auto: as "
        "often as costs 1 % of the time; never or 0: no copies.",
    )
    keep: int = _in_checkpoints(3, "Number of checkpoints to keep.", ge=1)
    compare_every: int = _in_checkpoints(
        100, "Steps between comparisons of all ranks' states, which find silent corruption; 0 is off.", ge=0
    )
    on_corruption: Literal["rollback", "stop"] = _in_checkpoints(
        "rollback", "Reaction to a rank whose state differs: back to the last checkpoint on which all agreed, or end."
    )
    resume_lr: Literal["keep", "scale"] = _in_checkpoints(
        "keep", "Learning rate on another number of devices: the same, or scaled with the global batch."
    )
    accept_changed_data: bool = _in_checkpoints(
        False, "Resume although images were added or removed since the checkpoint."
    )

    model: Literal["pnasnet5large", "pnasnet5mobile", "pnasnet5tiny"] = _in_model(
        "pnasnet5large", "Network; `tiny` is a scale for tests."
    )
    image_size: int = _in_model(331, "Side of the square input in pixels.", ge=16, le=1024)
    padding: Literal["exact", "seed"] = _in_model(
        "exact",
        "exact: the result of TensorFlow's SAME, without pad operators; seed: without the pads, as in the seed.",
    )
    aux: Literal["none", "seed", "tf"] = _in_model(
        "seed", "Auxiliary head: none, at the seed's cell, or at TensorFlow's."
    )
    aux_weight: float = _in_model(0.4, "Weight of the auxiliary loss.", ge=0)
    dropout: float = _in_model(0.5, "Dropout before the classifier.", ge=0, lt=1)
    drop_path: float = _in_model(0.0, "Drop-path rate of the last cell at the last step.", ge=0, lt=1)
    weights: Annotated[Path | None, Optional] = _in_model(
        None, "Weights to start from or to evaluate (ours, timm's, Cadene's or the seed's)."
    )
    match_classes: Literal["name", "order", "new"] = _in_model(
        "name", "Match the weights' classes with the folders by name, or by sorted order; new: a new classifier."
    )
    activation_checkpointing: bool = _in_model(
        False, "Recompute most cells in the backward pass: less memory, more time."
    )

    batch_size: int = _in_data(32, "Images per device and step.", ge=1)
    workers: Annotated[int | None, Optional] = _in_data(
        None,
        "Loader processes per device; 0 loads in the training process. [default: 4, or the CPUs per device if fewer]",
        ge=0,
    )
    normalize: Literal["none", "half", "imagenet"] = _in_data(
        "none", "Input mean and deviation: none ([0,1]), .5/.5, or ImageNet's."
    )
    crop_scale: float = _in_data(0.08, "Smallest area of a random training crop.", gt=0, le=1)
    flip: float = _in_data(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    augment: Literal["none", "affine", "trivial", "rand"] = _in_data(
        "none", "More augmentation: small affine, TrivialAugment or RandAugment."
    )
    mixup: float = _in_data(0.0, "Mixup's alpha; 0 is off.", ge=0, le=100)
    cutmix: float = _in_data(0.0, "CutMix's alpha; 0 is off.", ge=0, le=100)
    eval_crop: float = _in_data(0.875, "Share of the resized side that evaluation crops.", ge=0.25, le=1)
    interpolation: Literal["bilinear", "bicubic"] = _in_data("bilinear", "Resize filter of training and evaluation.")
    on_bad_image: Literal["fail", "skip"] = _in_data(
        "fail", "Reaction to an image that cannot be decoded: stop, or use another one and list it."
    )
    max_bad_images: float = _in_data(0.001, "Largest share of a split's images to skip.", ge=0, le=1)

    epochs: int = _in_optimisation(90, "Passes over the training images.", ge=0)
    steps: Annotated[int | None, Optional] = _in_optimisation(
        None, "Most steps per epoch; in performance mode the timed steps.", ge=1
    )
    warmup_steps: int = _in_optimisation(10, "First steps that the images/s figure leaves out.", ge=0)
    optimizer: Literal["sgd"] = _in_optimisation("sgd", "Rule that updates the weights; sgd is SGD with momentum.")
    lr: float = _in_optimisation(
        0.4, "Peak learning rate; --lr-batch scales it to the number of images per step.", gt=0
    )
    lr_batch: Annotated[int | None, Optional] = _in_optimisation(
        None,
        "Images per optimizer step of the whole job that --lr is for; a new run scales it to its own number. "
        "[default: --lr is used as given]",
        ge=1,
    )
    momentum: float = _in_optimisation(0.9, "SGD's momentum.", ge=0, lt=1)
    nesterov: bool = _in_optimisation(False, "Nesterov's momentum.")
    weight_decay: float = _in_optimisation(4e-5, "Weight decay.", ge=0)
    decay_all: bool = _in_optimisation(True, "Decay batch norm and biases too.")
    schedule: Literal["cosine-epoch", "cosine-step"] = _in_optimisation(
        "cosine-epoch", "Cosine to zero, moved once per epoch or at every step."
    )
    warmup_epochs: int = _in_optimisation(0, "Epochs of linear warm-up.", ge=0)
    label_smoothing: float = _in_optimisation(0.0, "Label smoothing.", ge=0, lt=1)
    clip_norm: float = _in_optimisation(0.0, "Clip the gradient's global norm; 0 is off.", ge=0)
    accumulate: int = _in_optimisation(1, "Batches per optimizer step.", ge=1)
    micro_batch: Annotated[int | None, Optional] = _in_optimisation(
        None,
        "Images per forward pass, to compute a batch in parts. [default: the batch; on a CPU the most that fits]",
        ge=1,
    )
    max_bad_steps: int = _in_optimisation(
        5, "Steps in a row with a loss or gradient that is not finite, before the run goes back.", ge=1
    )
    ema: float = _in_optimisation(0.0, "Decay of the weights' moving average; 0 is off.", ge=0, lt=1)

    device: Literal["auto", "npu", "cuda", "cpu", "npu-emulated"] = _in_devices(
        "auto", "Kind of device; npu-emulated (the CPU as an NPU, for tests) works in a checkout, not in pods."
    )
    npus: Annotated[int | None, Optional] = _in_devices(None, "Devices on this node. [default: all; 1 on a CPU]", ge=1)
    nodes: int = _in_devices(1, "Nodes of the job.", ge=1)
    node_rank: int = _in_devices(0, "Number of this node, from 0.", ge=0)
    master_addr: Annotated[str | None, Optional] = _in_devices(
        None, "Address of node 0. [default: 127.0.0.1 on one node]"
    )
    master_port: Annotated[int | None, Optional] = _in_devices(
        None, "Port of the rendezvous. [default: a free port on one node, else 29500]", ge=1, le=65535
    )
    rank_table: Annotated[Path | None, Optional] = _in_devices(
        None, "Rank table (hccl.json). [default: RANK_TABLE_FILE]"
    )
    rank_table_timeout_s: float = _in_devices(600.0, "Longest wait for a completed rank table.", gt=0, le=LONGEST_S)
    precision: Literal["auto", "fp32", "bf16", "fp16", "O2"] = _in_devices(
        "auto",
        "Arithmetic: auto is O2 on an NPU, bf16 on CUDA, fp32 on a CPU. fp32 rounds no operands (no HF32, no TF32).",
    )
    loss_scale: Annotated[float, Field(gt=0)] | Literal["dynamic"] = _in_devices(
        "dynamic", "Loss scale of fp16 and O2: a number, or adapted to overflow."
    )
    memory_format: Literal["auto", "nchw", "nhwc"] = _in_devices(
        "auto", "Layout of images and maps in memory: auto is nchw on an NPU, nhwc elsewhere."
    )
    graph: Literal["auto", "on", "off"] = _in_devices(
        "auto",
        "Capture each step as a graph, which the device launches at once; auto does where prove has shown it.",
    )
    bucket_mib: Annotated[int | None, Optional] = _in_devices(
        None,
        "MiB of gradients that eager steps exchange at once, during the backward pass. [default: 1, then 25 each]",
        ge=1,
        le=4096,
    )
    compile: bool = _in_devices(
        False,
        "Compile the network by torch.compile on a CPU, which needs a C++ compiler, or CUDA; each start takes minutes.",
    )
    threads: Annotated[int | None, Optional] = _in_devices(
        None, "CPU threads per device. [default: OMP_NUM_THREADS, or the CPUs divided by the devices]", ge=1
    )
    grace_s: float = _in_devices(30.0, "Time for workers to save and stop after SIGTERM.", ge=0, le=LONGEST_S)
    restarts: int = _in_devices(
        3, "Most restarts of crashed workers in their pod per hour; 0: a crash ends the run's pod.", ge=0
    )
    stall_timeout_s: float = _in_devices(
        900.0,
        "Longest wait of a rank for data or for its peers; then the run names it, and the attempt ends.",
        gt=0,
        le=LONGEST_S,
    )

    @field_validator("checkpoint_every")
    @classmethod
    def _interval(cls, text: str) -> str:
        Interval.parse(text)
        return text

    @field_validator("snapshot_every")
    @classmethod
    def _snapshot_interval(cls, text: str) -> str:
        parse_snapshot_every(text)
        return text

    @model_validator(mode="after")
    def _continues_training(self) -> "TrainConfig":
        """Refuse to continue a named run in a mode that does not train."""
        if isinstance(self.resume, Path) and self.mode == "eval":
            raise ValueError(
                f"--resume {self.resume}: continues training; to evaluate give --weights "
                "RUN/checkpoints/best.safetensors"
            )
        if isinstance(self.resume, Path) and self.mode == "prove":
            raise ValueError(f"--resume {self.resume}: --mode prove checks devices; leave --resume out")
        if isinstance(self.resume, Path) and self.mode == "performance":
            raise ValueError(
                f"--resume {self.resume}: --mode performance times steps from the start; leave --resume out"
            )
        return self

    @model_validator(mode="after")
    def _has_checks(self) -> "TrainConfig":
        if self.checks is not None and self.mode != "prove":
            raise ValueError(f"--checks {self.checks}: only --mode prove has checks: leave --checks out")
        if self.tune and self.mode != "prove":
            raise ValueError("--tune: only --mode prove looks for settings: leave --tune out")
        if self.tune and self.nodes > 1:
            raise ValueError(f"--tune: one node looks for its settings, not {self.nodes}: leave --nodes out")
        return self

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> "TrainConfig":
        """Refuse settings that contradict each other, before anything starts."""
        if info.context and info.context.get(PARTIAL):
            return self
        if self.mode in ("finetune", "eval") and self.weights is None:
            raise ValueError(f"--mode {self.mode} needs --weights, the file to start from")
        if self.mode == "eval" and self.match_classes == "new":
            raise ValueError("--match-classes new is for training: an evaluation needs the weights' own classifier")
        if self.node_rank >= self.nodes:
            raise ValueError(f"--node-rank {self.node_rank} is not below --nodes {self.nodes}; nodes count from 0")
        if self.batch_size == 1 and self.mode in TRAINING and (self.mixup or self.cutmix):
            raise ValueError("--mixup and --cutmix mix images of one batch: they need --batch-size of at least 2")
        if self.nesterov and self.momentum == 0:
            raise ValueError("--nesterov needs --momentum above 0")
        if self.mode in TRAINING and 0 < self.epochs <= self.warmup_epochs:
            raise ValueError(f"--warmup-epochs {self.warmup_epochs} leaves no epoch of --epochs {self.epochs}")
        if self.memory_format == "nhwc" and self.device in ("npu", EMULATED):
            raise ValueError("--memory-format nhwc is slow on an NPU: leave it out")
        if self.precision == "O2" and self.device == "cpu":
            raise ValueError("--precision O2 needs an NPU: on a CPU use --precision fp32")
        if self.graph == "on" and (self.device == "cpu" or self.mode == "eval"):
            reason = "a CPU has no graphs" if self.device == "cpu" else "--mode eval takes no training step"
            raise ValueError(f"--graph on: {reason}: leave --graph off")
        if self.mode in TRAINING and self.epochs == 0:
            raise ValueError(f"--mode {self.mode} needs --epochs of at least 1")
        if self.mode != "eval" and self.image_size < TWO_PIXELS and min(self.batch_size, self.micro_batch or 2) == 1:
            raise ValueError(
                f"--image-size {self.image_size} ends in maps of one pixel, and batch norm needs two values: "
                "compute at least 2 images at once (--batch-size, --micro-batch)"
            )
        return self

    @model_validator(mode="after")
    def _compiles(self) -> "TrainConfig":
        """Refuse to compile where nothing can be compiled, and what has not been tried together."""
        obstacles = {
            "--mode eval takes no training step: leave --compile out": self.mode == "eval",
            "no compiler for an NPU has been tried with the trainer: leave --compile out": self.device
            in ("npu", EMULATED),
            "a compiled step has not been captured yet: leave out --compile or --graph": self.graph == "on",
            "the compiler itself chooses what to recompute: leave out --compile or --activation-checkpointing": (
                self.activation_checkpointing
            ),
        }
        for obstacle, present in obstacles.items():
            if self.compile and present:
                raise ValueError(f"--compile: {obstacle}")
        return self


def parse_snapshot_every(text: str) -> tuple[bool, Interval | None]:
    """Return whether there are snapshots, and their interval if the user sets it.

    Raises:
        ValueError: the text is wrong; the message says what to write.
    """
    if text in ("never", "0"):
        return False, None
    try:
        return True, None if text == "auto" else Interval.parse(text)
    except ValueError:
        raise ValueError("write auto, never, a number of steps (50) or a duration with its unit (30s)") from None


TWO_PIXELS = 35
"""The network's five reductions halve smaller sides down to one pixel."""


def mode_of(layers: Sequence[Layer]) -> str:
    """Return the mode that `layers`, highest precedence first, choose."""
    return str(next((layer.values["mode"] for layer in layers if "mode" in layer.values), "full"))


def mode_layer(layers: Sequence[Layer]) -> Layer:
    """Return the preset of the mode that `layers` choose."""
    mode = mode_of(layers)
    return Layer(f"mode {mode}", MODE_PRESETS.get(mode, {}))


OF_ONE_ATTEMPT = frozenset(
    {
        *("resume", "output", "run_name", "resume_lr", "accept_changed_data"),
        *("checkpoint_every", "snapshot_every", "keep"),
        *("compare_every", "on_corruption"),
        *("device", "npus", "nodes", "node_rank", "master_addr", "master_port", "rank_table", "rank_table_timeout_s"),
        *("threads", "workers", "grace_s", "restarts", "stall_timeout_s", "log_interval"),
        "metrics_port",
    }
)
"""Settings of the machine or of one attempt, which a resumed run does not take from its checkpoint."""
OF_THE_BEGINNING = ("lr_batch", "weights", "match_classes")
"""Settings that only a run's first attempt uses: a resumed run has them from its checkpoint."""


def emulated_machine() -> Path:
    """Return the program that runs a command on emulated NPUs, which the tests of a checkout make of this CPU.

    Raises:
        ConfigError: There is no checkout around this package.
    """
    if not EMULATED_MACHINE.is_file():
        raise ConfigError(
            f"--device {EMULATED}: the emulated NPU is a part of the tests, and there is no {EMULATED_MACHINE}: run "
            "it from a checkout of the source, or use --device cpu"
        )
    return EMULATED_MACHINE


def user_layers(
    flags: Mapping[str, Any], profile: str | None, environ: Mapping[str, str] = os.environ
) -> tuple[Layer, ...]:
    """Return the user's settings: flag > environment > profile.

    Args:
        flags: Only the options on the command line, by field name.
        profile: A YAML file or the name of a shipped profile; PNAS_PROFILE if None.

    Raises:
        UsageError: The profile or a variable cannot be read.
    """
    layers = (Layer("flag", flags), environment_layer(TrainConfig, environ))
    profile = profile or variables.read(variables.PROFILE, environ)
    return layers if profile is None else (*layers, profile_layer(profile))


def checkpoint_layer(origin: str, begun: Mapping[str, Any]) -> Layer:
    """Return the settings of a run from its checkpoint, without the settings of one attempt."""
    return Layer(origin, {field: value for field, value in begun.items() if field not in OF_ONE_ATTEMPT})


def resolve_train_config(layers: Sequence[Layer], *, partial: bool = False) -> tuple[TrainConfig, dict[str, str]]:
    """Resolve `layers`, over the preset of the mode that they choose, over the defaults.

    Args:
        partial: The checkpoint's settings are not known yet: do not check the rules between settings.

    Returns:
        The configuration, and for each field the name of the layer that set it.

    Raises:
        ConfigError: One line that names the setting, where it came from and the rule it breaks.
    """
    return resolve(TrainConfig, [*layers, mode_layer(layers)], partial=partial)
