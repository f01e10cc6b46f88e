"""Every setting as a command-line option, for `submit`, `render`, `doctor` and `config show`."""

from launcher.settings.options import JobOptions
from trainer.shared.config import TrainConfig
from trainer.shared.config.options import Command, option_parameters, take_options

# The launcher names the trainer's run after the job.
_NOT_OFFERED = frozenset({"run_name"})


def takes_settings(command: Command) -> Command:
    """Replace the command's `**options` by one option for each setting."""
    return take_options(
        command,
        before=option_parameters(JobOptions),
        after=option_parameters(TrainConfig, exclude=_NOT_OFFERED),
    )
