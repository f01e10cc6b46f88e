"""Every setting as a command-line option: what submit and `config show` take beside their own options.

A module of its own because it needs pydantic, which the other commands and `--help` do without.
"""

import inspect
from collections.abc import Callable, Sequence

from launcher.settings.spec import JobOptions
from trainer.shared.config import TrainConfig
from trainer.shared.config.layers import flag_name
from trainer.shared.config.options import option_parameters

# The launcher names the trainer's run after the job.
_NOT_OFFERED = frozenset({"run_name"})


def take_settings(command: Callable[..., None], tokens: Sequence[str] | None = None) -> None:
    """Put one option for each setting in the place of the command's `**options`.

    Args:
        tokens: the command line. If all its options are known, only those are made, a tenth of a second sooner; a help
            page, or a word that needs a suggestion, has all of them.
    """
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    wanted = None if tokens is None else _wanted(tokens, {flag_name(parameter.name) for parameter in own})
    settings = [
        *option_parameters(JobOptions, only=wanted),
        *own,
        *option_parameters(TrainConfig, exclude=_NOT_OFFERED, only=wanted),
    ]
    command.__dict__["__signature__"] = inspect.Signature(settings)


def _wanted(tokens: Sequence[str], own: set[str]) -> frozenset[str] | None:
    """The settings that the command line names; None for all of them."""
    known = {flag_name(name): name for model in (JobOptions, TrainConfig) for name in model.model_fields}
    found = set()
    for token in tokens:
        flag = token.partition("=")[0]
        if not flag.startswith("-") or flag in own:
            continue
        name = known.get(flag) or known.get(f"--{flag.removeprefix('--no-')}")
        if name is None:
            return None
        found.add(name)
    return frozenset(found)
