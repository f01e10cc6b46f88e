"""Every setting as a command-line option: what submit and `config show` take beside their own options.

A module of its own because it needs pydantic, which the other commands and `--help` do without.
"""

import inspect
from collections.abc import Callable

from launcher.spec import JobOptions
from trainer.config import TrainConfig
from trainer.config.options import option_parameters

# The launcher names the trainer's run after the job.
_NOT_OFFERED = frozenset({"run_name"})


def take_settings(command: Callable[..., None]) -> None:
    """Put one option for each setting in the place of the command's `**options`."""
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    settings = [*option_parameters(JobOptions), *own, *option_parameters(TrainConfig, exclude=_NOT_OFFERED)]
    command.__dict__["__signature__"] = inspect.Signature(settings)
