"""A job's history is what its log says of each attempt, and what the cluster says of its pods."""

import json

import pytest

from launcher.jobs import JobRef, JobState, LogBlock, LogItem, LogLoss, Phase
from launcher.output.history import history_document, history_text, read_history
from tests.documents import documents

NODE1 = b"[node 0 #1] "
KILLED = b'outcome=lost cause="killed without a word (out of memory, or its pod or node is gone)"'
FIRST = (
    NODE1 + b"attempt n=1 host=p-1 nodes=2 started=2026-11-30T11:00:00Z ended=2026-11-30T11:10:00Z steps=42 " + KILLED
)
SECOND = NODE1 + b"attempt n=2 host=p-2 node=n2 nodes=2 started=2026-11-30T11:12:05Z from=checkpoints/step-40 gap_s=125"
ENDED = SECOND + b' ended=2026-11-30T11:20:00Z steps=90 outcome=failed rank=3 device=npu:3 cause="killed by SIGKILL"'


def _job(phase: Phase, **pods: str) -> JobState:
    facts = [{"name": f"p-{number[1:]}", "node": "node1", "ended": end} for number, end in pods.items()]
    return JobState(JobRef("batch", "mine"), phase, details={"pods": facts})


@pytest.mark.parametrize(
    ("lines", "job", "ends"),
    [
        ([], _job(Phase.RUNNING), []),
        ([SECOND], _job(Phase.RUNNING), [(2, "n2", None, None)]),
        ([SECOND], _job(Phase.FAILED, p2="OOMKilled"), [(2, "n2", "lost", "OOMKilled")]),
        ([SECOND, ENDED], _job(Phase.FAILED, p2="exit code 1"), [(2, "n2", "failed", "killed by SIGKILL")]),
        (
            [FIRST, SECOND],
            _job(Phase.RUNNING, p1="Evicted: the node was low on memory"),
            [(1, "node1", "lost", "Evicted: the node was low on memory"), (2, "n2", None, None)],
        ),
        (
            [ENDED, FIRST],
            _job(Phase.SUCCEEDED),
            [
                (1, None, "lost", "killed without a word (out of memory, or its pod or node is gone)"),
                (2, "n2", "failed", "killed by SIGKILL"),
            ],
        ),
        # Another program in the pod, and a worker, can print the same words.
        ([SECOND.removeprefix(NODE1), b"[rank 0 cpu:0 #1] attempt n=5", NODE1 + b"attempt n=x"], _job(Phase.LOST), []),
        ([NODE1 + b"attempt n=7 host=123 from=9"], _job(Phase.RUNNING), [(7, None, None, None)]),
    ],
)
def test_the_latest_line_about_each_attempt_counts(
    lines: list[bytes], job: JobState, ends: list[tuple[int, str | None, str | None, str | None]]
) -> None:
    log: list[LogItem] = [LogLoss("gone"), *(LogBlock(line + b"\n") for line in lines)]
    attempts = read_history(log, job)
    assert [(one["n"], one["node"], one["outcome"], one["cause"]) for one in attempts] == ends
    assert [item["attempt"] for item in history_document(job, attempts)["items"]] == [number for number, *_ in ends]


@pytest.mark.parametrize("word", ["soon", '"2 s"', "nan", "inf", "1e999"])
def test_a_word_in_the_place_of_a_number_is_unknown(word: str) -> None:
    line = NODE1 + f"attempt n=1 nodes={word} gap_s={word} steps={word} rank={word} host=h\n".encode()
    attempts = read_history([LogBlock(line)], _job(Phase.RUNNING))
    assert history_text(attempts).splitlines()[1].split()[-3:] == ["-", "-", "running"]
    documents(json.dumps(history_document(_job(Phase.RUNNING), attempts)))


def test_the_table_tells_each_attempts_node_steps_gap_and_end() -> None:
    attempts = read_history([LogBlock(b"\n".join([FIRST, ENDED, b""]))], _job(Phase.FAILED, p1="OOMKilled"))
    titles, first, second = history_text(attempts).splitlines()
    assert titles.split() == ["ATTEMPT", "NODE", "STARTED", "ENDED", "FROM", "GAP", "STEPS", "END"]
    assert first.split()[:2] == ["1", "node1"]
    assert "the beginning" in first
    assert first.endswith("42     lost: OOMKilled")
    assert second.split()[4:9] == ["checkpoints/step-40", "2", "min", "5", "s"]
    assert second.endswith("failed: rank 3: killed by SIGKILL")
