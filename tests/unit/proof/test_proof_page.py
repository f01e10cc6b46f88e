"""The report of `prove` is safe to send: texts of devices and logs are escaped, and secrets are hidden."""

import json
import re

from tests.documents import one_document
from tests.unit.launcher.test_redaction import LINES, LINES_OF_TOOLS
from trainer.environment.facts import Facts
from trainer.environment.parsing import Chip, NpuProcess, NpuSmi
from trainer.proof.check import CheckOutcome, ProofCheck, Result
from trainer.proof.page import proof_page
from trainer.proof.report import Proof, make_proof, proof_text

HOSTILE = "<script>alert(1)</script>\x1b[31m\"'</style>"
FACTS = Facts(packages={"torch": "2.9.0"}, python="3.11.2", machine="aarch64")


def proof(*results: Result, facts: Facts = FACTS, stopped: str | None = None) -> Proof:
    checks = [
        ProofCheck(name, "", "device", "m:f", 1.0, opens=name == "open")
        for name in dict.fromkeys(["open", *(result.check for result in results)])
    ]
    return make_proof("npu", facts, checks, results, started_at=0.0, stopped=stopped)


def page_of(own: Proof) -> str:
    return proof_page(json.loads(proof_text(own)))


def result(check: str, place: str, verdict: str, measured: str = "", **figures: float) -> Result:
    outcome = CheckOutcome(verdict, measured, "42, by a definition", "replace it", figures)  # type: ignore[arg-type]  # a word of a test's table
    return Result(check, place, outcome, 0.5)


def test_what_a_reader_must_act_on_comes_first_and_equal_outcomes_once() -> None:
    page = page_of(
        proof(
            *(result("open", f"npu:{number}", "passed", "Ascend910B3") for number in range(8)),
            result("memory", "npu:3", "failed", "one byte was lost"),
            result("link", "npu:0 npu:1", "unfinished", "no answer within 60 s"),
        )
    )
    assert re.findall("<h2>(.*?)</h2>", page)[:3] == ["Failed", "Unfinished", "Passed"]
    assert page.index("one byte was lost") < page.index("no answer within 60 s") < page.rindex("npu:0, npu:1, npu:2")
    assert page.count("42, by a definition") == 3
    assert page.count("replace it") == 2, "nothing to do where a check has passed"


def test_figures_of_all_devices_stand_together() -> None:
    speeds = (256.0, 256.0, 128.0)
    own = proof(*(result("matmul", f"npu:{n}", "passed", rate_tflops=rate) for n, rate in enumerate(speeds)))
    page = page_of(own)
    assert "matmul: rate_tflops" in page
    assert "<td>npu:2</td><td>128</td><td>-50.0 %</td>" in page
    assert 'style="width: 50.0%"' in page


def test_stopped_checks_are_named() -> None:
    page = page_of(proof(result("open", "npu:0", "passed"), stopped="SIGINT"))
    assert "Stopped by SIGINT. Not run: nothing." in page


def test_hostile_texts_are_shown_and_not_obeyed() -> None:
    facts = Facts(packages={HOSTILE: HOSTILE}, python=HOSTILE, machine=HOSTILE, variables={"HCCL_X": HOSTILE})
    page = page_of(proof(result("open", HOSTILE, "passed", HOSTILE), facts=facts))
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in page
    assert page.count("</style>") == 1


def test_no_form_of_a_secret_leaves_the_machine() -> None:
    """As last words of a run, and as variables: in each form in which programs write secrets."""
    forms = [line for line in (*LINES, *LINES_OF_TOOLS) if "%s" in line]
    planted = {f"FORM_{number}": line.replace("%s", f"Pl4nted{number:04}x7") for number, line in enumerate(forms)}
    words = (result(name, "npu:0", "failed", f"its last words: {text}") for name, text in planted.items())
    own = proof(*words, facts=Facts(packages={}, python="3.11", machine="x", variables=planted))
    for document in (proof_text(own), page_of(own)):
        assert [text for number, text in enumerate(planted.values()) if f"Pl4nted{number:04}x7" in document] == []


def test_secrets_are_hidden_in_the_document_and_so_on_the_page() -> None:
    secrets = {"HCCL_TOKEN": "s3cret-one", "ASCEND_PROXY": "http://ann:s3cret-two@proxy:3128"}
    facts = Facts(packages={}, python="3.11", machine="x", variables={**secrets, "HCCL_CONNECT_TIMEOUT": "600"})
    own = proof(
        result("open", "npu:0", "passed", "Ascend910B3"),
        result("run", "npu:0", "failed", "its last words: Authorization: Bearer s3cret-three-7"),
        facts=facts,
    )
    text = proof_text(own)
    one_document(text, "Proof")
    for document in (text, page_of(own)):
        assert "s3cret" not in document
        assert "(hidden)" in document
        assert "600" in document


def test_addresses_and_other_users_processes_are_hidden_and_versions_stay() -> None:
    chip = Chip(1, 0, "910B3", "OK", "0000:C1:00.0")
    facts = Facts(
        packages={"torch": "2.9.0"},
        python="3.11",
        machine="x",
        cann="8.0.0.1",
        driver="24.1.0.3",
        npu_smi=NpuSmi("23.0.3.1", (chip,), (NpuProcess(1, 0, 484706, "python3 (theirs)"), NpuProcess(1, 0, 99, ""))),
        hccn={0: "192.168.1.11"},
        variables={"HCCL_IF_IP": "fd00:12::7", "MASTER_ADDR": "127.0.0.1"},
    )
    own = proof(
        result("versions", "node", "passed", "CANN 8.0.0.1, driver 24.1.0.3, needs version 25.1.0.4 at least"),
        result("run", "npu:0", "failed", "connect to [fd00:12::9]:60000 or 10.0.0.7:29500 from ::1: refused"),
        facts=facts,
    )
    text = proof_text(own)
    one_document(text, "Proof")
    for document in (text, page_of(own)):
        for private in ("192.168", "10.0.0", "fd00", "484706", "theirs"):
            assert private not in document, private
        for kept in ("8.0.0.1", "24.1.0.3", "23.0.3.1", "25.1.0.4", "127.0.0.1", "from ::1: refused", "0000:C1:00.0"):
            assert kept in document, kept
