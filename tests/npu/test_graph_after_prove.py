"""`prove` on emulated NPUs: its record lets `--graph auto` capture steps, and provenance.json refers to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.local.conftest import train
from tests.local.resumable_runs import recipe
from tests.npu.conftest import SHORT
from trainer.records.proof_record import ProofRecord, ProvenCheck, ProvenDevice, add_to_proof
from trainer.training.resume import RESUMED
from trainer.worker.graph import captured_checks


@pytest.mark.usefixtures("on_npus")
def test_graph_auto_captures_where_prove_has_shown_that_it_works(few_digits: Path, tmp_path: Path) -> None:
    options = recipe("--device", "npu", "--npus", "2", "--precision", "fp16", *SHORT)
    before = train(tmp_path, *options, data=few_digits, name="before")
    assert before.code == 0, before.stdout
    assert '] graph auto=off reason="prove has not run with Ascend910-emulated ' in before.stdout
    assert json.loads((before.run / "provenance.json").read_text())["proof"] is None

    prove = [sys.executable, "-m", "trainer", "prove", "--device", "npu", "--npus", "1", "--only", "open"]
    done = subprocess.run([*prove, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / ".proofs").glob("*/*.json")
    record = ProofRecord.model_validate_json(path.read_text())
    passed = ProvenCheck(verdict="passed", time="2026-11-30T21:00:00Z")
    checks = captured_checks("fp16", 2)
    planted = dict.fromkeys((*checks, RESUMED), passed)
    add_to_proof(tmp_path, ProvenDevice.of(record.device, record.versions), record.host, planted)

    after = train(tmp_path, *options, data=few_digits, name="after")
    assert after.code == 0, after.stdout
    assert f'] graph auto=on reason="{", ".join(checks)} passed on Ascend910-emulated"' in after.stdout
    assert " graph=on " in next(line for line in after.stdout.splitlines() if "] start " in line)
    proof = json.loads((after.run / "provenance.json").read_text())["proof"]
    assert proof["record"] == str(path.parent)
    losses = [[(row["step"], row["loss"]) for row in run.metrics("step")] for run in (before, after)]
    assert losses[0] == losses[1]

    resumed = train(tmp_path, *options, "--resume", "auto", data=few_digits, name="after")
    assert '] resumed bit_exact="in small"' in resumed.stdout
