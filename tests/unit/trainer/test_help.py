"""The trainer's help page: every option, examples, and an answer before torch could be imported."""

import re
import subprocess
import sys

from trainer.shared.config import TrainConfig
from trainer.shared.config.layers import flag_name


def test_the_help_page_names_every_option_and_shows_examples() -> None:
    done = subprocess.run([sys.executable, "-m", "trainer", "--help"], capture_output=True, text=True, check=True)
    assert "For example:" in done.stdout
    shown = set(re.findall(r"^  --(?:\[no-\])?([a-z0-9-]+)", done.stdout, re.MULTILINE))
    assert {flag_name(field).removeprefix("--") for field in TrainConfig.model_fields} <= shown
    assert "--profile" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_command_line_needs_neither_torch_nor_numpy() -> None:
    program = "import sys, trainer.cli; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
