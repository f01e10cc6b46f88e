"""How a command ends: with one line on stderr and the documented exit code, never with a traceback.

The one place that tells the user of errors, whether they come from the command line, the launcher, the trainer's
settings or the system. It also holds what keeps Ctrl-C from being lost, or from coming too early: Python raises
KeyboardInterrupt wherever the main thread happens to be. In the callback of a weak reference or in a finaliser (each
import runs some) the interpreter prints the exception and forgets it, so that the user's Ctrl-C has no effect.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cyclopts import CoercionError, CycloptsError, UnusedCliTokensError

from launcher import PROGRAM
from launcher.errors import ExitCode, LauncherError
from launcher.jobs import UNSUPPORTED
from trainer.shared.documents import error_line
from trainer.shared.errors import TrainerError
from trainer.shared.program import drop_output, say_error
from trainer.shared.text import escape_what_streams_lack, visible

# Long enough for the main thread to leave the place that drops exceptions, too short for the user to notice.
_REDELIVER_S = 0.02


def run_command(command: Callable[[], object], *, as_json: bool = False) -> int:
    """Run `command`, report its error if it raises one, and return the exit code.

    Args:
        as_json: print the error on standard output too, as a document, unless a document there says the same.
    """
    escape_what_streams_lack()
    try:
        command()
        sys.stdout.flush()
    except CycloptsError as error:
        return _fail("Usage", _usage(error), ExitCode.USAGE, as_json=as_json)
    except (LauncherError, TrainerError) as error:
        return _fail(error, str(error), error.exit_code, as_json=as_json and not error.documented)
    except KeyboardInterrupt:
        return _fail("Interrupted", "interrupted", ExitCode.INTERRUPTED, as_json=as_json)
    except (BrokenPipeError, SystemExit):
        # The reader of the output has ended, as `| head` does; rich, which draws help pages, then exits the program.
        drop_output(sys.stdout)
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        # One of the launcher's own files, or a standard output that is full; the job is not affected. An error about a
        # working folder that was removed has no name, and cannot come from an output.
        unnamed = "the working folder" if isinstance(error, FileNotFoundError) else "standard output"
        source = error.filename or unnamed
        message = f"{source}: {error.strerror}; a running job goes on"
        return _fail("Io", message, ExitCode.IO_ERROR, as_json=as_json and source != "standard output")
    return ExitCode.OK


def redeliver_interrupts() -> None:
    """From now on, raise an interrupt again that the interpreter drops."""
    sys.unraisablehook = _redeliver


@contextmanager
def defer_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back while a job is created or cancelled; deliver them at the end, so that no half stays.

    Other threads than the main one get no signals, and need nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def _redeliver(dropped: "sys.UnraisableHookArgs") -> None:
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    # Not from here: the interpreter drops exceptions of this function too.
    timer = threading.Timer(_REDELIVER_S, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()


def _usage(error: CycloptsError) -> str:
    """Return what is wrong with the command line, and which help page has the answer."""
    token = error.token if isinstance(error, CoercionError) else None
    if token is not None and token.keyword == "--backend" and token.value in UNSUPPORTED:
        return f"--backend {token.value}: {UNSUPPORTED[token.value]}"
    if isinstance(error, UnusedCliTokensError):
        text = f"unexpected argument {' '.join(error.unused_tokens or ())}"
    else:
        text = str(error)
    page = " ".join((PROGRAM, *(error.command_chain or ()), "--help"))
    return f"{text if text.endswith('...') else text.removesuffix('.')}; see `{page}`"


def _fail(error: Exception | str, message: str, code: int, *, as_json: bool) -> int:
    """Print the error, and return its exit code. An interrupt is no error, because the job goes on."""
    text = visible(" ".join(message.split()))
    prefix = "" if code == ExitCode.INTERRUPTED else "error: "
    say_error(prefix + text, error_line(error, text, code) if as_json else "")
    return code
