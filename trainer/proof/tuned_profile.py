"""The profile that `prove --tune` writes: the chosen settings, and all that was measured as comments.

It is there from the beginning of the tuning, and replaced after each switch: whatever ends the tuning, it has what was
found so far.
"""

import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from trainer.proof.switches import is_environment_variable
from trainer.proof.timing import RunSettings
from trainer.proof.tuning import TriedSwitch
from trainer.shared.config.layers import flag_name
from trainer.shared.errors import UsageError
from trainer.shared.files import own_partial, replacing, writing
from trainer.shared.program import TRAINER
from trainer.shared.text import visible
from trainer.shared.yaml_text import to_yaml


class TunedProfile(contextlib.AbstractContextManager["TunedProfile"]):
    """The file, which no earlier file may be in the way of; without a result it is removed at the end of the context.

    Raises:
        UsageError: it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved = False
        if os.path.lexists(path):
            raise UsageError(f"{path}: exists: move it away, or choose another --output")

    def __enter__(self) -> "TunedProfile":
        """Create it, so that hours later there is room for it.

        Raises:
            TrainerError: it cannot be written.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("x") as file:
                file.write("# The tuning has found nothing yet.\n")
        return self

    def save(self, facts: Mapping[str, Any], best: RunSettings, tried: Sequence[TriedSwitch], state: str) -> None:
        """Write what has been found.

        Raises:
            TrainerError: it cannot be written; the file stays as it was.
        """
        text = profile_text(self.path.name, facts, best, tried, state)
        with writing(self.path), replacing(self.path, partial=own_partial(self.path)) as partial:
            partial.write_text(text, encoding="utf-8")
        self._saved = True

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not self._saved:
            self.path.unlink(missing_ok=True)


def profile_text(
    name: str, facts: Mapping[str, Any], best: RunSettings, tried: Sequence[TriedSwitch], state: str
) -> str:
    """Return a profile of the settings in `best`.

    Args:
        name: Of the file.
        facts: The provenance of a timed run; its host, paths and variables stay out of the profile.
        state: The outcome of the comparison with the defaults, in one line.
    """
    chosen = {one.switch.name: one for one in tried if one.switch.name in best}
    lines = [f"# Settings for this kind of machine, by `{TRAINER} prove --tune`.", *_machine(facts), f"# {state}"]
    variables = {name: value for name, value in best.items() if is_environment_variable(name)}
    options = {name: value for name, value in best.items() if name not in variables}
    for option, value in options.items():
        lines += ["", f"# {chosen[option].chosen}: {chosen[option].switch.reason}"]
        lines += [to_yaml({option: value}).strip()]
    if options:
        flags = " ".join(f"{flag_name(option)}={value}" for option, value in options.items())
        lines += [f"# The same next to another profile: {flags}"]
    if variables:
        given = " ".join(f"--env {shlex.quote(f'{name}={value}')}" for name, value in variables.items())
        exported = " ".join(shlex.quote(f"{name}={value}") for name, value in variables.items())
        lines += ["", "# Variables are no settings of a profile; give them to each run:"]
        lines += [f"#   python -m launcher submit --profile {name} {given}", f"#   export {exported}"]
        lines += [f"# {one}={chosen[one].chosen}: {chosen[one].switch.reason}" for one in variables]
    if others := [
        f"#   {one.switch.name}={value}"
        for one in tried
        for value in one.values
        if value is not one.chosen or one.switch.name not in best
    ]:
        lines += ["", "# Left as it is:", *others]
    return "".join(f"{visible(line)}\n" for line in lines)


def _machine(facts: Mapping[str, Any]) -> list[str]:
    """Return comments about the devices, the versions and what a run computes."""
    try:
        device, config, versions = facts["device"], facts["config"], facts["versions"]
        named = " ".join(f"{package} {version}" for package, version in versions.items() if package.startswith("torch"))
        return [
            f"# Devices: {facts['world_size']} x {device['name']} ({device['kind']}); {named}",
            f"# Steps: {config['model']}, {config['image_size']} px, {config['batch_size']} images per device, "
            f"precision {config['precision']}; images of noise from this machine's disk.",
        ]
    except (KeyError, TypeError, AttributeError):
        return []
