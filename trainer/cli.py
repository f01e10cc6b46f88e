"""The trainer's command line: finds this node's place in the job, and supervises one worker per device."""

import contextlib
import difflib
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError

from trainer.commands.emulated import start_on_emulated_npus
from trainer.commands.env import environment_report, environment_summary, findings_of_run, worker_environment
from trainer.devices.runtime_env import EVENLY, hccl_timeouts, openmp_threads
from trainer.environment.affinity import read_affinity
from trainer.environment.facts import find_npu_smi, read_facts
from trainer.environment.findings import FEWEST_OPEN_FILES
from trainer.environment.npu_smi import NpuSmiProgram
from trainer.environment.sampler import HardwareSampler, node_sampler
from trainer.run.termination import RunTermination
from trainer.shared.config import EMULATED, TrainConfig, resolve_train_config, user_layers
from trainer.shared.config.options import PROFILE_HELP, given_options, option_parameters, take_options
from trainer.shared.container import HIGHER_LIMIT, MORE_FILES
from trainer.shared.documents import JSON_OPTION, error_line
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.help import HelpPage
from trainer.shared.program import (
    BROKEN_PIPE,
    INTERRUPTED,
    TRAINER,
    drop_output,
    output_fails,
    say_error,
    without_garbage_collector,
)
from trainer.shared.text import escape_what_streams_lack, visible
from trainer.supervisor import Supervisor
from trainer.topology import Topology, check_addresses, discover, visible_devices

if TYPE_CHECKING:
    from trainer.run.attempt import Attempt

HELP = f"""
Train PNASNet-5 on images in the ImageNet folder layout, with one process per device.

For example:

    {TRAINER} --data-path /data/imagenet --npus 8 --profile recommended
    {TRAINER} --data-path /data/imagenet --run-name large --resume auto
    {TRAINER} --mode performance --data-path data/digits --device cpu --image-size 32
    {TRAINER} --mode eval --data-path /data/imagenet --weights best.safetensors

An option may also come from the environment (PNAS_BATCH_SIZE=64) or from a YAML profile; a flag wins over both.
"""

app = App(
    name=TRAINER,
    help=HELP,
    help_format="plaintext",
    help_formatter=HelpPage(),
    version=lambda: f"pnas {version('pnas')}",
    suppress_keyboard_interrupt=False,
)
app["--help"].group = app["--version"].group = Group.create_ordered("Help")
_COMMANDS = {
    "data": "Make and check data sets in the ImageNet folder layout.",
    "env": "Report this machine's NPUs, versions, settings and limits, and what does not fit.",
    "inspect": "Show the content of a checkpoint or a weight file, and whether it is whole.",
    "ranktable": "Check or explain a rank table (hccl.json).",
    "predict": "Show the most probable classes of images.",
    "prove": "Check this machine, each of its devices, and what training promises on them.",
    "export": "Write weights as a file for ONNX Runtime or for torch without this project.",
}
for _name, _summary in _COMMANDS.items():
    # Its module is imported when a user types the command: each start of a run would take 0.07 s more.
    app.command(f"trainer.commands.{_name}:{_name}_app", name=_name, help=_summary)


def train(
    *,
    profile: Annotated[str | None, Parameter(help=PROFILE_HELP, group="Settings", show_default=False)] = None,
    dry_run: Annotated[
        bool,
        Parameter(
            help="Check the settings, the data and the checkpoint, and start nothing.",
            negative="",
            group="Settings",
            show_default=False,
        ),
    ] = False,
    **options: Any,
) -> int:
    """Resolve the options and run.

    The exit code is 0, 1 (failed), 2 (usage), 6 (folder taken), 7 (no retry helps) or 75 (resumable).
    """
    # They import numpy, in a fifth of a second, too long for --help and for a typo.
    with without_garbage_collector():
        from trainer.run import attempt, devices, prove, restarts, tries  # noqa: PLC0415  # see above

    layers = user_layers(given_options(options), profile)
    config, _ = resolve_train_config(layers, partial=True)
    if config.resume is None:
        resolve_train_config(layers)  # no checkpoint will add settings that could make them agree
    else:
        layers = (*layers, devices.keep_devices(layers, os.environ, _note))
        config, _ = resolve_train_config(layers, partial=True)
    facts = read_facts(os.environ, npu_smi_timeout_s=None)
    if config.device == EMULATED and not facts.emulated:
        start_on_emulated_npus()
    visible = visible_devices("npu" if config.device == EMULATED else config.device, os.environ)
    facts = worker_environment(facts, config.stall_timeout_s)
    # These refuse wrong values before anything is created, and before the summary names them as problems.
    if 0 <= facts.open_files < FEWEST_OPEN_FILES:
        raise UsageError(f"{facts.open_files} open files are too few for a run: {MORE_FILES}")
    if visible.kind == "npu":
        hccl_timeouts(config.stall_timeout_s, os.environ)
    if config.threads is None:
        openmp_threads(os.environ)
    problems = findings_of_run(facts, device=visible.kind, workers=config.workers)
    for line in environment_summary(facts, problems, device=visible.kind):
        _note(line)
    termination, command = RunTermination(), (sys.executable, "-m", "trainer", *sys.argv[1:])
    with termination.handling_signals(), tempfile.TemporaryDirectory(prefix="pnas-") as scratch:
        topology = discover(config, os.environ, visible=visible, scratch=Path(scratch), on_status=_note)
        if topology.world_size > 1:
            check_addresses(topology.master_addr, nodes=topology.nodes, environ=os.environ)
        if config.mode == "prove":
            job = prove.ProofJob(config, topology, visible.kind)
            if dry_run:
                _note("everything fits together; nothing was started")
                return 0
            with Supervisor(sys.stdout.buffer, node_rank=topology.node_rank) as supervisor:
                return job.run(supervisor)
        npu_smi = NpuSmiProgram(find_npu_smi(os.environ) or "npu-smi")
        starter = attempt.RunStarter(
            topology,
            command=command,
            on_note=_note,
            on_lost=termination.lose_folder,
            on_asked=termination.hand_over,
            retries=None if dry_run else tries.JobRetries.of_pod(os.environ),
            environment=environment_report(facts, problems),
            affinity=EVENLY if dry_run else read_affinity(visible, npu_smi, os.environ),
        )
        if dry_run:
            attempt.check_attempt(layers, starter)
            _note("everything fits together; nothing was started")
            return 0
        with (
            attempt.begin_attempt(layers, starter) as run,
            node_sampler(topology, visible, npu_smi) as sampler,
            _serving_metrics(run, topology, sampler),
            Supervisor(
                sys.stdout.buffer,
                node_rank=topology.node_rank,
                loss=lambda: termination.find_loss(run.lease, run.run),
                sampler=sampler,
            ) as supervisor,
        ):
            outcome = restarts.run_attempts(run, starter, supervisor, device=visible.kind)
            if outcome.exit_code:
                termination.find_loss(run.lease, run.run)
            termination.raise_if_lost()
    return outcome.exit_code


app.default(take_options(train, after=option_parameters(TrainConfig)))


def _serving_metrics(
    run: "Attempt", topology: Topology, sampler: HardwareSampler
) -> contextlib.AbstractContextManager[None]:
    """Serve the figures of the run while the context lasts, if the user asks for it."""
    if run.config.metrics_port is None:
        return contextlib.nullcontext()
    from trainer.run.metrics_server import serving  # noqa: PLC0415  # a web server: only such a run pays for it

    return serving(run, topology, sampler, port=run.config.metrics_port)


def _note(text: str) -> None:
    # A full or broken standard output stops no run: the supervisor goes on in its log files.
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{visible(text)}\n".encode(errors="backslashreplace"))


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:  # libraries of torch would not find each other, and say nothing of it
        raise UsageError("the working folder has been removed: change to another folder") from error


def _usage(error: CycloptsError) -> str:
    """Return the fault in the command line; an unexpected word may be a misspelt command."""
    if not isinstance(error, UnusedCliTokensError) or not error.unused_tokens:
        return " ".join(str(error).split())
    suggestion = "".join(f" Did you mean {name}?" for name in difflib.get_close_matches(error.unused_tokens[0], app, 1))
    return f"unexpected argument {' '.join(error.unused_tokens)}.{suggestion}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; print every error of the user's as one line on stderr, with --json as a document too."""
    words = sys.argv[1:] if arguments is None else arguments
    as_json = JSON_OPTION in words
    escape_what_streams_lack()
    try:
        _check_working_folder()
        if "" in words and words[0] in app:  # the options of a run name the empty one themselves
            raise UsageError(f"{words[0]}: an argument is empty; is a variable of the shell unset?")
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        document = error_line("Usage", _usage(error), UsageError.exit_code) if as_json else ""
        say_error(visible(f"error: {_usage(error)} (see {TRAINER} --help)"), document)
        return UsageError.exit_code
    except TrainerError as error:
        document = error_line(error, str(error), error.exit_code) if as_json and not error.documented else ""
        say_error(visible(f"error: {error}"), document)
        return error.exit_code
    except (BrokenPipeError, SystemExit):
        # The reader of the output has ended, as `| head` does; rich, which draws help pages, then exits the program.
        drop_output(sys.stdout)
        return BROKEN_PIPE
    except OSError as error:
        place = error.filename or ("standard output" if output_fails() else "")
        advice = HIGHER_LIMIT.get(error.errno or 0, "free it, permit it or choose another place")
        text = f"{f'{place}: ' if place else ''}{error.strerror or error}; {advice}"
        say_error(visible(f"error: {text}"), error_line("Io", text, 1) if as_json and error.filename else "")
        return 1
    except KeyboardInterrupt:
        text = "interrupted" if words and words[0] in app else "interrupted before any worker was started"
        say_error(f"error: {text}", error_line("Interrupted", text, INTERRUPTED) if as_json else "")
        return INTERRUPTED
    return result if isinstance(result, int) else 0
