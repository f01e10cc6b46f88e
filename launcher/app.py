"""The command line as such: its first page, its groups, and what it ends with. Commands join it when imported."""

from cyclopts import App, Group

from launcher import PROGRAM
from launcher.errors import MEANINGS
from trainer.shared.help import HelpPage

_HELP = f"""
Train PNASNet-5 on NPUs: start a job, follow its log per device, and see how it ends.

A job outlives this program: leave it with Ctrl-C, and come back whenever you like.

For example:

  {PROGRAM} submit --npus 8 --mode full --data-path /data/imagenet
  {PROGRAM} logs -f
  {PROGRAM} submit --help
"""


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415  # only --version pays for it

    return f"pnas {version('pnas')}"


def _exit_codes() -> str:
    """The exit codes and what they mean."""
    return "Exit codes:\n" + "\n".join(f"  {code.value:>3}  {text}" for code, text in MEANINGS.items())


app = App(
    name=PROGRAM,
    help=_HELP,
    help_format="plaintext",
    help_formatter=HelpPage(),
    help_epilogue=_exit_codes(),
    version=_version,
    group_parameters="Options",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # else it becomes a SystemExit, which is a reader's who has seen enough
)
RUN, WATCH, STOP, SETTINGS = (Group.create_ordered(name) for name in ("Run", "Watch", "Stop", "Settings"))
app["--help"].group = app["--version"].group = Group.create_ordered("Help")
