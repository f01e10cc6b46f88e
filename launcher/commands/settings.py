"""Every setting as a command-line option, for `submit`, `render`, `doctor` and `config show`."""

from collections.abc import Callable, Set

from launcher.settings.options import JobOptions
from trainer.shared.config import TrainConfig
from trainer.shared.config.options import Command, option_parameters, take_options

# The launcher names the trainer's run after the job.
_NOT_OFFERED = frozenset({"run_name"})


def takes_settings(*, shown: Set[str] | None = None) -> Callable[[Command], Command]:
    """Replace the command's `**options` by one option for each setting.

    Args:
        shown: the settings that the help page shows; all of them if None.
    """

    def replace(command: Command) -> Command:
        return take_options(
            command,
            before=option_parameters(JobOptions, shown=shown),
            after=option_parameters(TrainConfig, exclude=_NOT_OFFERED, shown=shown),
        )

    return replace
