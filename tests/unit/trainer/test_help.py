"""The trainer's help page: every option, examples, and an answer before torch could be imported."""

import re
import subprocess
import sys

import pytest

from trainer.shared.config import TrainConfig
from trainer.shared.config.layers import flag_name


def test_the_help_page_names_every_option_and_shows_examples() -> None:
    done = subprocess.run([sys.executable, "-m", "trainer", "--help"], capture_output=True, text=True, check=True)
    assert "For example:" in done.stdout
    shown = set(re.findall(r"^  --(?:\[no-\])?([a-z0-9-]+)", done.stdout, re.MULTILINE))
    assert {flag_name(field).removeprefix("--") for field in TrainConfig.model_fields} <= shown
    assert "--profile" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    commands = dict(
        re.findall(r"^  ([a-z]+) +(\S.*)$", done.stdout.partition("Commands:\n")[2].partition("\n\n")[0], re.MULTILINE)
    )
    assert set(commands) == {"data", "env", "export", "inspect", "predict", "prove", "ranktable"}


@pytest.mark.parametrize("command", ["data", "env", "export", "inspect", "predict", "prove", "ranktable"])
def test_a_commands_module_is_there_when_it_is_typed(command: str) -> None:
    words = [sys.executable, "-m", "trainer", command, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: python -m trainer {command} ")


def test_the_command_line_of_a_run_needs_neither_torch_nor_numpy_nor_other_commands() -> None:
    program = "import sys, trainer.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert not modules & {"torch", "numpy", "trainer.proof"}
    assert {name for name in modules if name.startswith("trainer.commands.")} == {
        "trainer.commands.emulated",
        "trainer.commands.env",
    }
