"""A backend that somebody may expect is refused in one line that says why there is none."""

import pytest

from launcher.cli import app
from launcher.exits import run_command
from launcher.jobs import UNSUPPORTED


@pytest.mark.parametrize("words", [("render", "--image", "r/p:1"), ("list",)])
def test_ascendjobs_are_refused_in_one_line_that_says_why(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def typed(*tokens: str) -> int:
        return run_command(lambda: app(tokens, exit_on_error=False, print_error=False))

    said = f"error: --backend ascendjob: {UNSUPPORTED['ascendjob']}\n"
    assert typed(*words, "--backend", "ascendjob") == 2
    assert capsys.readouterr() == ("", said)
    monkeypatch.setenv("PNAS_BACKEND", "ascendjob")
    assert typed(*words) == 2
    told = capsys.readouterr()
    assert UNSUPPORTED["ascendjob"] in told.err
    assert (told.out, len(told.err.splitlines())) == ("", 1)
