"""How a command ends: whatever happens becomes one line on stderr and the documented exit code, never a traceback.

The one place that knows how errors of the command line, the launcher, the trainer's settings and the system are told
to a person, so that no command has to.
"""

import os
import sys
from collections.abc import Callable

from cyclopts import CoercionError, CycloptsError, UnusedCliTokensError

from launcher import PROGRAM
from launcher.errors import Detached, ExitCode, LauncherError
from launcher.jobs import UNSUPPORTED
from trainer.shared.errors import TrainerError


def run(command: Callable[[], object]) -> int:
    """Run `command` with standard output and the terminal's Ctrl-C in mind; return the exit code."""
    # A path may hold bytes that are no text, and a terminal may not have every letter: neither is worth an error.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
        sys.stdout.flush()
    except CycloptsError as error:
        return _fail(_usage(error), ExitCode.USAGE)
    except (LauncherError, TrainerError) as error:
        return _fail(str(error), error.exit_code, prefix="" if isinstance(error, Detached) else "error: ")
    except KeyboardInterrupt:
        return _fail("interrupted", ExitCode.INTERRUPTED, prefix="")
    except (BrokenPipeError, SystemExit):
        # `| head` has seen enough; rich, which draws the help pages, answers that by ending the program.
        _drop_output()
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        # The launcher's own files, or a standard output that is full; the job has nothing to do with it.
        _drop_output()
        where = f"{error.filename}: " if error.filename else "standard output: "
        return _fail(f"{where}{error.strerror}; a running job goes on", ExitCode.JOB_FAILED)
    return ExitCode.OK


def _usage(error: CycloptsError) -> str:
    """What is wrong with the command line, and which help page has the answer."""
    if isinstance(error, CoercionError) and (why := _unsupported(error)):
        return why
    if isinstance(error, UnusedCliTokensError):
        text = f"unexpected argument {' '.join(error.unused_tokens or ())}"
    else:
        text = str(error)
    page = " ".join((PROGRAM, *(error.command_chain or ()), "--help"))
    return f"{text if text.endswith('...') else text.removesuffix('.')}; see `{page}`"


def _unsupported(error: CoercionError) -> str:
    """Why there is no such backend, if somebody may expect it."""
    if error.token is None or error.token.keyword != "--backend" or error.token.value not in UNSUPPORTED:
        return ""
    return f"--backend {error.token.value}: {UNSUPPORTED[error.token.value]}"


def _fail(message: str, code: int, *, prefix: str = "error: ") -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    sys.stderr.write(prefix + " ".join(message.split()) + "\n")
    return code


def _drop_output() -> None:
    """Lead standard output nowhere: Python flushes what is left once more at exit, and would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
