"""A report in a real browser: it asks for nothing, reports no error, and can be read in a narrow and a wide window.

PNAS_TEST_PICTURES names a folder that gets a picture of each page.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import pictures
from launcher.cli import main
from tests.browser import NARROWEST_CELL, PROGRAM, SMALLEST_TEXT, Browser, open_browser
from tests.cluster.testbed.requirements import missing_packages
from tests.run_folders import ATTEMPTS, write_run
from tests.unit.proof.test_proof_page import page_of, proof, result
from trainer.environment.facts import Facts
from trainer.proof.report import Proof

HOSTILE = "<script src=http://127.0.0.1:9/x.js></script><img src=http://127.0.0.1:9/x.png onerror=alert(1)>\"'</style>"
PICTURES = os.environ.get("PNAS_TEST_PICTURES")
DEVICES = [
    {"kind": "hardware", "time": f"2026-11-30T10:{minute:02}:00Z", "device": f"npu:{device}", "hbm_mib": 9e3 + minute}
    for minute in range(60)
    for device in range(8)
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if shutil.which(PROGRAM) is None and os.geteuid() != 0:
        pytest.fail("pages are tested in Chromium: have root install the package `chromium`", pytrace=False)
    if problem := missing_packages({PROGRAM: "chromium"}):
        pytest.fail(problem, pytrace=False)
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The page of a long run, of one that has not begun, of a hostile one, of two runs, and of proofs."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("long"), epochs=90, attempts=ATTEMPTS, rows=DEVICES)
    write_run(Path("empty"), epochs=0)
    write_run(
        Path("hostile"),
        attempts=[{"attempt": 1, "node": HOSTILE, "cause": HOSTILE}],
        settings={HOSTILE: HOSTILE, "data_path": "/data/" + "x" * 500},
        rows=[{"kind": HOSTILE, "device": HOSTILE, "global_step": 1, HOSTILE: 1}],
    )
    paths = {}
    for words in (["long"], ["empty"], ["hostile"], ["long", "hostile"]):
        assert main(["report", *(f"./{word}" for word in words)]) == 0
        paths["-".join(words)] = tmp_path / f"report-{'-'.join(words)}.html"
    for name, text in (("proof", "32 of 32 patterns were read back"), ("hostile-proof", HOSTILE)):
        paths[name] = tmp_path / f"{name}.html"
        paths[name].write_text(page_of(_proof(text)))
    return paths


def _proof(text: str) -> Proof:
    """Return the proof of 16 devices, one of which has lost memory."""
    devices = [f"npu:{device}" for device in range(16)]
    facts = Facts({"torch": "2.9.0"}, text, "aarch64", variables={f"HCCL_{number}": text for number in range(9)})
    return proof(
        *(result("open", device, "passed", "Ascend910B3") for device in devices),
        *(result("memory", device, "failed" if device == "npu:3" else "passed", text) for device in devices),
        *(result("matmul", device, "passed", text, fp16_tflops=256.0) for device in devices),
        facts=facts,
        stopped="SIGINT",
    )


def test_a_page_asks_for_nothing_and_can_be_read(browser: Browser, pages: dict[str, Path]) -> None:
    for name, page in pages.items():
        for width in (400, 1600):
            for dark in (False, True):
                view = browser.show(page, width=width, dark=dark)
                assert (view.requests, view.errors, view.scripts) == ([], [], 0), name
                assert view.width <= width, f"{name} must be scrolled to the right at {width} px"
                assert view.smallest >= SMALLEST_TEXT, f"{name} at {width} px"
                assert view.narrowest >= NARROWEST_CELL, f"{name} at {width} px"
                if PICTURES:
                    picture = Path(PICTURES) / f"{name}-{width}-{'dark' if dark else 'light'}.png"
                    picture.write_bytes(view.picture)


def test_the_pictures_in_the_docs_need_no_other_file(browser: Browser) -> None:
    for picture in pictures.files():
        view = browser.show(picture, width=1000)
        assert (view.requests, view.errors, view.scripts) == ([], [], 0), picture


def test_a_page_that_asks_for_something_would_be_found(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<script src='x.js'></script><img src='x.png'><p style='width:2000px;font-size:3px'>wide and small</p>"
    )
    view = browser.show(page, width=400)
    assert {Path(address).name for address in view.requests} == {"x.js", "x.png"}
    assert view.errors
    assert view.scripts == 1
    assert view.width > 400
    assert view.smallest < SMALLEST_TEXT
