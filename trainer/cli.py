"""The trainer's command line: finds out who this node is, starts one worker per device, and watches over them."""

import inspect
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from trainer.commands.data import data_app
from trainer.commands.env import as_a_worker_has_it, env_app, first_lines
from trainer.commands.inspect import inspect_app
from trainer.commands.ranktable import ranktable_app
from trainer.devices.runtime_env import hccl_defaults, runtime_defaults
from trainer.environment.facts import read_facts
from trainer.run.folder import console_log
from trainer.run.termination import Ending
from trainer.shared.config import EMULATED, TrainConfig, emulated_machine, settings, user_layers
from trainer.shared.config.options import option_parameters, typed
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import reading
from trainer.shared.help import HelpPage
from trainer.supervisor import WorkerCommand, supervise
from trainer.topology import Topology, Worker, discover, visible_devices
from trainer.worker.task import TASK_VARIABLE, WorkerTask

if TYPE_CHECKING:
    from trainer.data.index import Datasets
    from trainer.run.attempt import Attempt

HELP = """
Train PNASNet-5 on images in the ImageNet folder layout, with one process per device.

For example:

    python -m trainer --data-path /data/imagenet --npus 8 --profile recommended
    python -m trainer --data-path /data/imagenet --run-name large --resume auto
    python -m trainer --mode performance --data-path data/digits --device cpu --image-size 32
    python -m trainer --mode eval --data-path /data/imagenet --weights best.safetensors

An option may also come from the environment (PNAS_BATCH_SIZE=64) or from a YAML profile; a flag wins over both.
"""

Profile = Annotated[
    str | None,
    Parameter(help="Settings from a YAML file, or seed, recommended or digits.", group="Settings", show_default=False),
]

app = App(
    name="python -m trainer",
    help=HELP,
    help_format="plaintext",
    help_formatter=HelpPage(),
    version=lambda: f"pnas {version('pnas')}",
    suppress_keyboard_interrupt=False,
)
app["--help"].group = app["--version"].group = Group.create_ordered("Help")
app.command(data_app)
app.command(env_app)
app.command(inspect_app)
app.command(ranktable_app)


def train(*, profile: Profile = None, **options: Any) -> int:
    """Resolve the options and run; the exit code is 0, 1 (failed), 2 (usage), 6 (folder taken) or 75 (resumable)."""
    # Imported here: numpy costs a tenth of a second, which neither --help nor a typo should wait for.
    from trainer.run.attempt import Starter, begin  # noqa: PLC0415

    layers = user_layers(typed(options), profile)
    given, _ = settings(layers, partial=True)
    if given.resume is None:
        settings(layers)  # nothing is still to come that could make them agree
    facts = read_facts(os.environ, ask_npu_smi=False)
    if given.device == EMULATED and not facts.emulated:
        _start_on_emulated_npus()
    visible = visible_devices("npu" if given.device == EMULATED else given.device, os.environ)
    judged = as_a_worker_has_it(facts, given.stall_timeout_s)
    for line in first_lines(judged, device=visible.kind, workers=given.workers):
        _note(line)
    if visible.kind == "npu":
        hccl_defaults(given.stall_timeout_s, os.environ)  # refuses what is no number before anything is created
    ending = Ending()
    with ending.watching(), tempfile.TemporaryDirectory(prefix="pnas-") as scratch:
        topology = discover(given, os.environ, visible=visible, scratch=Path(scratch), on_status=_note)
        starter = Starter(topology, command=_command(), on_note=_note, on_lost=ending.lose)
        with begin(layers, starter, lambda config: check_inputs(config, topology)) as attempt:
            commands = [
                worker_command(worker, topology, attempt=attempt, device=visible.kind) for worker in topology.workers
            ]
            outcome = supervise(
                commands, stdout=sys.stdout.buffer, node_rank=topology.node_rank, grace_s=attempt.config.grace_s
            )
            ending.check()
    return outcome.exit_code


train.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # cyclopts reads the options from here
    [
        inspect.Parameter(
            "profile",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Profile,
        ),
        *option_parameters(TrainConfig),
    ],
    return_annotation=int,
)
app.default(train)


def _start_on_emulated_npus() -> NoReturn:
    """Start the same command again, where PYTHONPATH has them."""
    if sys.flags.ignore_environment:
        raise UsageError(f"--device {EMULATED}: PYTHONPATH has to be read: start Python without -I and -E")
    os.execv(sys.executable, (sys.executable, str(emulated_machine()), sys.executable, *sys.orig_argv[1:]))


def _note(text: str) -> None:
    print(text, flush=True)


def _command() -> tuple[str, ...]:
    return (sys.executable, "-m", "trainer", *sys.argv[1:])


def check_inputs(config: TrainConfig, topology: Topology) -> "Datasets":
    """The data; data and weights that cannot be used are refused before anything is created.

    Raises:
        UsageError: one line that names what is wrong.
    """
    # Imported here, as numpy.
    from trainer.data.index import load_datasets  # noqa: PLC0415
    from trainer.data.sampler import steps_per_epoch  # noqa: PLC0415
    from trainer.run.resume import is_training_state  # noqa: PLC0415

    if config.weights is not None:
        with reading(config.weights):
            if is_training_state(config.weights):
                raise UsageError(
                    f"--weights {config.weights}: is a training state: continue it with --resume, or give the weights "
                    "in its run's checkpoints/best.safetensors"
                )
            if not config.weights.is_file():
                raise UsageError(f"--weights {config.weights}: no such file")
    datasets = load_datasets(config.data_path, need_train=config.mode != "eval")
    if config.mode != "eval" and datasets.train is not None:
        steps_per_epoch(
            len(datasets.train),
            world_size=topology.world_size,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
        )
    return datasets


def worker_command(worker: Worker, topology: Topology, *, attempt: "Attempt", device: str) -> WorkerCommand:
    """How one worker is started: unbuffered, so that a crash keeps its last words."""
    config, run = attempt.config, attempt.run
    task = WorkerTask(
        config=config,
        run=run,
        device=device,
        rank=worker.rank,
        local_rank=worker.local_rank,
        world_size=topology.world_size,
        local_world_size=-(-topology.world_size // topology.nodes),
        master_port=topology.master_port,
        command=_command(),
        attempt=attempt.number,
        checkpoint=attempt.checkpoint,
    )
    return WorkerCommand(
        rank=worker.rank,
        device=f"{device}:{worker.local_rank}",
        argv=(sys.executable, "-u", "-m", "trainer.worker.__main__"),
        env={
            **os.environ,
            **runtime_defaults(device, config, run, os.environ),
            **rendezvous(worker, topology, threads=config.threads),
            TASK_VARIABLE: task.to_json(),
        },
        log=console_log(run, worker.rank, attempt=attempt.number),
    )


def rendezvous(worker: Worker, topology: Topology, *, threads: int | None) -> dict[str, str]:
    """The environment that torch and HCCL read; what the administrator has set stays as it is where it may."""
    share = max(1, len(os.sched_getaffinity(0)) // len(topology.workers))
    environment = {
        "RANK": str(worker.rank),
        "LOCAL_RANK": str(worker.local_rank),
        "WORLD_SIZE": str(topology.world_size),
        "MASTER_ADDR": topology.master_addr,
        "MASTER_PORT": str(topology.master_port),
        "OMP_NUM_THREADS": str(threads or os.environ.get("OMP_NUM_THREADS", share)),
    }
    if topology.nodes == 1 and sys.platform == "linux":
        # gloo would otherwise look for the interface of this machine's name, which a laptop off the network lacks.
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    if topology.rank_table is not None:
        environment["RANK_TABLE_FILE"] = str(topology.rank_table)
    return environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every error of the user's is one line on stderr."""
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(f"error: {' '.join(str(error).split())} (see python -m trainer --help)", file=sys.stderr)
        return 2
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read the help has read enough
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}; free it, permit it or choose another place", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted before any worker was started", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0
