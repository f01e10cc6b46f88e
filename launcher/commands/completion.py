"""`completion`: commands, options, their values and the names of jobs in bash, zsh and fish."""

import os
import re
import signal
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from types import FrameType
from typing import Annotated, Literal, NamedTuple

from cyclopts import App, Parameter
from cyclopts.argument import Argument, ArgumentCollection

from launcher.backends import list_jobs
from launcher.commands import COMMANDS
from launcher.commands.parameters import Where
from launcher.errors import LauncherError
from launcher.jobs import BACKEND_NAMES, BackendName
from trainer.shared.errors import UsageError
from trainer.shared.program import COMMAND_LINE

WAIT_S = 2
"""A user who presses the tab key waits this long for a cluster's jobs."""
_OF_SHELLS = re.compile(r"[\w.:/=-]+")
"""Words that every shell takes as they are."""
_ASK = '"$program" completion {shell} -- "$current" "${{before[@]}}" 2> /dev/null'
SCRIPTS = {
    "bash": f"""\
_pnas() {{
    local program=${{COMP_WORDS[0]}} current=${{COMP_WORDS[COMP_CWORD]}} IFS=$'\\n'
    local before=("${{COMP_WORDS[@]:1:COMP_CWORD-1}}")
    COMPREPLY=($({_ASK.format(shell="bash")} | cut -f 1))
}}
complete -o default -F _pnas pnas
""",
    "zsh": f"""\
#compdef pnas
_pnas() {{
    local program=${{words[1]}} current=${{words[CURRENT]}} line
    local -a before=("${{(@)words[2,CURRENT-1]}}") found
    for line in "${{(@f)$({_ASK.format(shell="zsh")})}}"; do
        [[ -n $line ]] && found+=("${{${{line%%$'\\t'*}}//:/\\\\:}}:${{line#*$'\\t'}}")
    done
    if (( $#found )); then _describe pnas found; else _files; fi
}}
compdef _pnas pnas
""",
    "fish": """\
function __pnas
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($before[1] completion fish -- "$current" $before[2..-1] 2> /dev/null)
    if set -q found[1]
        printf '%s\\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c pnas -f -a '(__pnas)'
""",
}
"""The script for each shell. It asks this program at the tab key, and completes files where nothing fits."""


class Candidate(NamedTuple):
    """A word that can stand at the cursor, and what it means."""

    word: str
    meaning: str


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Your shell.")],
    current: Annotated[str | None, Parameter(help="For the script: the word at the cursor.")] = None,
    /,
    *before: Annotated[str, Parameter(help="For the script: the words between `pnas` and the cursor.")],
) -> None:
    """Print a script that completes commands, options, their values and jobs' names.

    It completes the words of `pnas`, which `pip install` makes.
    """
    if current is None:
        print(SCRIPTS[shell], end="")
        return
    # This command line says nothing of the options that can follow on another.
    COMMAND_LINE.set(None)
    # bash makes separate words of `=`.
    words = [word for word in before if word != "="]
    for word, meaning in candidates("" if current == "=" else current, words):
        print(f"{word}\t{meaning}", flush=True)


def candidates(start: str, before: Sequence[str]) -> Iterator[Candidate]:
    """Yield the words with this start that can follow those before; none if only a file or the user's own word can.

    Options are many: they come if the start is theirs, or if nothing else can follow.
    """
    others = 0
    for word, meaning in _followers(before):
        is_option = word.startswith("-")
        others += not is_option
        if word.startswith(start) and _OF_SHELLS.fullmatch(word) and (start or not (is_option and others)):
            yield Candidate(word, meaning)


def _followers(before: Sequence[str]) -> Iterator[Candidate]:
    entry = next((entry for entry in COMMANDS if before[:1] == [entry.name]), None)
    if entry is None:
        return iter(() if before else [Candidate(entry.name, entry.summary) for entry in COMMANDS])
    return _of_command(_load(entry.target), before[1:])


def _load(target: str) -> App:
    module, _, name = target.partition(":")
    command = getattr(import_module(f"launcher.commands.{module}"), name)
    if isinstance(command, App):
        return command
    app = App()
    app.default(command)
    return app


def _of_command(app: App, before: Sequence[str]) -> Iterator[Candidate]:
    if app.default_command is None:
        names = [name for name in app if not name.startswith("-")]
        if before and before[0] in names:
            return _of_command(app[before[0]], before[1:])
        return iter([Candidate(name, _first_line(app[name].help)) for name in names])
    arguments = app.assemble_argument_collection()
    options = {name: argument for argument in arguments for name in argument.names if name.startswith("--")}
    last = options.get(before[-1]) if before else None
    if last is not None and not last.is_flag():
        return _values(last, before)
    return _next_words(arguments, options, before)


def _next_words(
    arguments: ArgumentCollection, options: dict[str, Argument], before: Sequence[str]
) -> Iterator[Candidate]:
    """Yield the values of the next positional parameter, and the options."""
    values = {value for option, value in pairwise(before) if option in options and not options[option].is_flag()}
    given = [word for word in before if not word.startswith("-") and word not in values]
    for argument in arguments:
        if argument.index == len(given):
            yield from _values(argument, before)
    for name, argument in options.items():
        yield Candidate(name, _first_line(argument.parameter.help))
    yield Candidate("--help", "Display this message and exit.")


def _values(argument: Argument, before: Sequence[str]) -> Iterator[Candidate]:
    if argument.names and argument.names[0] in ("NAME", "OTHER", "--name"):
        return _jobs(before)
    return iter([Candidate(choice, "") for choice in argument.get_choices() or ()])


def _jobs(before: Sequence[str]) -> Iterator[Candidate]:
    """Yield the names of jobs: first this machine's, then a cluster's, if it answers soon."""
    given = dict(pairwise(before))
    try:
        where = Where(
            namespace=given.get("--namespace"),
            context=given.get("--context"),
            backend=next((name for name in BACKEND_NAMES if name == given.get("--backend")), None),
        )
        backend = where.backend_name
        here = list(_listed("local", where)) if backend in ("auto", "local") else []
        yield from here
        signal.signal(signal.SIGALRM, _leave)
        signal.alarm(WAIT_S)
        yield from (one for one in _listed(backend, where) if one not in here)
    except (LauncherError, UsageError):
        return  # text in the middle of what the user types would not help the user
    finally:
        signal.alarm(0)


def _listed(backend: BackendName, where: Where) -> Iterator[Candidate]:
    for _, state, _ in list_jobs(backend, where.access).jobs:
        yield Candidate(state.ref.name, state.phase.value)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End at once: what was found so far is printed."""
    os._exit(0)


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0].partition(". ")[0]
