"""A backend that users may expect but that does not exist is refused in one line that says why."""

import pytest

from launcher.cli import app
from launcher.exits import run_command
from launcher.jobs import UNSUPPORTED


@pytest.mark.parametrize("words", [("render", "--image", "r/p:1"), ("list",)])
def test_ascendjobs_are_refused_in_one_line_that_says_why(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*tokens: str) -> int:
        return run_command(lambda: app(tokens, exit_on_error=False, print_error=False))

    message = f"error: --backend ascendjob: {UNSUPPORTED['ascendjob']}\n"
    assert run(*words, "--backend", "ascendjob") == 2
    assert capsys.readouterr() == ("", message)
    monkeypatch.setenv("PNAS_BACKEND", "ascendjob")
    assert run(*words) == 2
    output = capsys.readouterr()
    assert UNSUPPORTED["ascendjob"] in output.err
    assert (output.out, len(output.err.splitlines())) == ("", 1)
