"""Every setting as a command-line option, for `submit`, `render`, `doctor` and `config show`."""

import inspect
from collections.abc import Callable
from typing import TypeVar

from launcher.settings.options import JobOptions
from trainer.shared.config import TrainConfig
from trainer.shared.config.options import option_parameters

Command = TypeVar("Command", bound=Callable[..., None])
# The launcher names the trainer's run after the job.
_NOT_OFFERED = frozenset({"run_name"})


def takes_settings(command: Command) -> Command:
    """Replace the command's `**options` by one option for each setting."""
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = [
        *option_parameters(JobOptions),
        *own,
        *option_parameters(TrainConfig, exclude=_NOT_OFFERED),
    ]
    command.__dict__["__signature__"] = inspect.Signature(parameters)
    return command
