"""`python -m launcher`: see `launcher.cli`; `launcher.first_page` is for a user who types no command."""

import sys

from trainer.shared.program import run_program

if __name__ == "__main__":
    asks_for_help = sys.argv[1:2] in ([], ["-h"], ["--help"])
    run_program("launcher.first_page" if asks_for_help else "launcher.cli")
