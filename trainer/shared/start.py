"""Start the `main` of a module of this software, and no file of the same name in the user's working folder.

`python -m` looks for modules in the working folder first, and many people have a `trainer.py` there. Python has an
option against it (`-P`) only since 3.11. So programs start each other by the path of this file:
`python .../trainer/shared/start.py MODULE ARGUMENTS…`. It imports nothing of this software, so that it works before
Python looks for the packages.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).resolve()
_ROOT = _FILE.parents[2]


def module_command(module: str, *python_options: str) -> tuple[str, ...]:
    """Return the command line that runs the `main` of a module in a new process, up to the module's arguments."""
    return (sys.executable, *python_options, str(_FILE), module)


def pin_packages() -> None:
    """Import the packages next to this file, wherever Python would look for them first."""
    for name in ("trainer", "launcher"):
        folder = _ROOT / name
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if name not in sys.modules and spec is not None and spec.loader is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])


def run_pinned(module: str) -> None:
    """Run a program's `main` by `trainer.shared.program`, which no file of the user's hides."""
    pin_packages()
    importlib.import_module("trainer.shared.program").run_program(module)


def forget_working_folder() -> None:
    """Remove the folder that Python put before all others, because of `-m` or of a script: it is the user's."""
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):  # Python 3.10 has no safe_path
        del sys.path[0]


if __name__ == "__main__":
    forget_working_folder()
    pin_packages()
    sys.exit(importlib.import_module(sys.argv.pop(1)).main())
