"""npu-smi next to emulated NPUs: a topology reaches the workers, and a hanging one leaves no trace in the training."""

import dataclasses
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.local.conftest import TrainerResult
from tests.local.forked_trainer import FIRST_MODULE
from tests.local.resumable_runs import recipe
from tests.npu.conftest import O2, SHORT, Run
from tests.npu.seen_affinity import SEEN

DATA = Path(__file__).parents[1] / "data" / "environment"
TOPOLOGY = "npu-smi-topo-24.1.rc1-a2.txt"


def test_an_npu_smi_that_hangs_changes_no_figure_of_a_run_and_does_not_outlive_it(
    npus: dict[str, str], in_o2: TrainerResult, few_digits: Path, tmp_path: Path
) -> None:
    script, pids = tmp_path / "npu-smi", tmp_path / "pids"
    answer = (
        f'case "$*" in info) cat {DATA / "npu-smi-24.1.rc3-a2.txt"};; "info -t topo") cat {DATA / TOPOLOGY};; '
        f"*) cat {DATA / 'npu-smi-ecc-26.0.txt'};; esac"
    )
    # From the fourth call on it hangs: it sleeps longer than the test may last.
    script.write_text(f"#!/bin/sh\necho $$ >> {pids}\n[ $(wc -l < {pids}) -gt 3 ] && exec sleep 1000\n{answer}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    environ = {**os.environ, **npus, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # The table has the NPUs 0 and 1 of the machine's eight.
    folders = ("--data-path", str(few_digits), "--output", str(tmp_path), "--run-name", "run")
    command = [sys.executable, "-m", "tests.local.fast_sampler", *folders, *recipe(*O2)]
    done = subprocess.run(
        command, env={**environ, "ASCEND_RT_VISIBLE_DEVICES": "0,1"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert b' use_percent="0 12" memory_percent="5 80" temperature_c="49 47" power_w="95 90" host_use' in done.stdout
    run = dataclasses.replace(in_o2, run=tmp_path / "run")
    rows = [row for row in run.metrics("hardware") if row["device"] != "cpu"]
    assert [(row["device"], row["rank"], row["health"], row.get("ecc_corrected")) for row in rows] == [
        ("npu:0", 0, "OK", 5),
        ("npu:1", 1, "Warning", None),
    ]
    hanging = pids.read_text().split()[3:]
    assert hanging  # more than one if the run outlasts the limit of the first
    for pid in hanging:
        with suppress(psutil.NoSuchProcess):  # the system may need a moment to forget a killed process
            psutil.Process(int(pid)).wait(timeout=60)
    assert [run.metrics(kind) for kind in ("step", "eval")] == [in_o2.metrics(kind) for kind in ("step", "eval")]


def test_a_worker_stays_on_the_containers_processors_next_to_its_npu(run: Run, tmp_path: Path) -> None:
    """The recorded layout, with this machine's processors next to the sixth of eight NPUs."""
    usable, seen = sorted(os.sched_getaffinity(0)), tmp_path / "seen"
    topology, script = tmp_path / "topology", tmp_path / "npu-smi"
    topology.write_text((DATA / TOPOLOGY).read_text().replace("  0-23\n", f"  {usable[0]}-{usable[-1] + 8}\n"))
    script.write_text(f'#!/bin/sh\n[ "$*" = "info -t topo" ] && cat {topology}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASCEND_RT_VISIBLE_DEVICES": "5"}
    done = run("near", *SHORT, environ={**environ, FIRST_MODULE: "tests.npu.seen_affinity", SEEN: str(seen)})
    assert done.code == 0, done.stdout
    assert seen.read_text() == f"1,npu0:{usable[0]}-{usable[-1]}"
