"""Why a program cannot be loaded is one line that names the cause."""

import sys

import pytest

from trainer.shared.program import describe_loading_error

UNLIMITED, LIMITED = -1, 1000 << 20
NUMPY = """

IMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!

Original error was: libopenblas.so: failed to map segment from shared object
"""


@pytest.mark.parametrize(
    ("error", "limit", "text"),
    [
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), UNLIMITED, "has no yaml: use the Python that"),
        (ImportError("libx.so: cannot open shared object file"), LIMITED, "file; install the packages of pnas again"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            LIMITED,
            "has too little memory (libtorch_cpu.so: failed to map segment from shared object); this "
            "process can use only 1000 MiB (ulimit -v): give it more",
        ),
        (ImportError(NUMPY), UNLIMITED, "(Original error was: libopenblas.so: failed to map segment from shared "),
        (MemoryError(), UNLIMITED, "has too little memory (MemoryError); give it more"),
    ],
)
def test_a_loading_error_is_one_line_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, error: ImportError | MemoryError, limit: int, text: str
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    line = describe_loading_error(error)
    assert line.startswith(sys.executable)
    assert text in line
    assert "\n" not in line


@pytest.mark.parametrize("kind", [ModuleNotFoundError, ImportError])
def test_a_missing_part_of_this_software_is_a_fault_of_it(kind: type[ImportError]) -> None:
    with pytest.raises(kind):
        describe_loading_error(kind("cannot import name", name="trainer.nope"))
