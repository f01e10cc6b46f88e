"""`python -m trainer ranktable` judges a table as the start of a job does, and explains a valid one."""

import json
from pathlib import Path

import pytest

from tests.documents import one_document
from tests.unit.ranktable.test_ranktable import rank_list, server_list, super_pods
from tests.unit.ranktable.test_ranktable_recorded import EXPECTED, INIT, recorded
from trainer.cli import main

POD_VARIABLES = ("POD_UID", "POD_IP", "POD_NAME", "HOST_IP", "NODE_IP", "XDL_IP")


@pytest.fixture(autouse=True)
def _no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in POD_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def written(folder: Path, table: object, name: str = "hccl.json") -> str:
    path = folder / name
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return str(path)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_recorded_table_gets_the_same_verdict_as_at_a_jobs_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for text, expected in zip(recorded(name), EXPECTED[name], strict=True):
        path = written(tmp_path, text)
        code = main(["ranktable", "check", path])
        output = capsys.readouterr()
        if expected == INIT:
            assert code == 1
            assert "not yet completed; look again in a moment" in output.err
        elif expected.startswith("refused: "):
            assert code == 1
            assert expected.removeprefix("refused: ") in output.err
        else:
            assert code == 0
            servers = expected.split()
            assert output.out.startswith(f"{path}: valid; version ")
            assert f" of {len(servers)} server" in output.out
        assert len((output.out + output.err).splitlines()) == 1


def test_show_explains_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ranktable", "show", written(tmp_path, server_list(2, 1))]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version 1.0, 3 devices of 2 servers",
        "master      10.244.0.1, which has rank 0",
        "",
        "ranks 0 to 1",
        "  server_id 10.0.0.1",
        "  pod's IP  10.244.0.1",
        "  host's IP 10.0.0.1",
        "  rank  device  device_ip",
        "     0       0  192.168.0.1",
        "     1       1  192.168.0.2",
        "",
        "rank 2",
        "  server_id 10.0.0.2",
        "  pod's IP  10.244.0.2",
        "  host's IP 10.0.0.2",
        "  rank  device  device_ip",
        "     2       0  192.168.1.1",
    ]


def test_show_remarks_on_unusual_but_valid_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = server_list(2, 2)
    for number, server in enumerate(shared["server_list"]):
        server |= {"host_ip": "10.0.0.9", "server_id": f"0000000{number}-0000-0000-0000-000000000000"}
        server["device"].reverse()
        for device in server["device"]:
            device["device_ip"] = "127.0.0.1"
    assert main(["ranktable", "show", written(tmp_path, shared)]) == 0
    remarks = capsys.readouterr().out.splitlines()[-4:]
    assert [remark.split(" ")[0] for remark in remarks] == ["server_id", "2", "a", "ranks"]
    assert "2 pods share the node 10.0.0.9" in remarks[1]
    assert remarks[3].endswith(": 1, 0, 1, 0")
    assert main(["ranktable", "show", written(tmp_path, super_pods(2))]) == 0
    assert "devices without a device_ip" in capsys.readouterr().out


@pytest.mark.parametrize("table", [server_list(8, 8), super_pods(8, 8), rank_list(8, 8)])
def test_the_document_names_version_servers_and_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: object
) -> None:
    for command in ("show", "check"):
        assert main(["ranktable", command, written(tmp_path, table), "--json"]) == 0
        document = one_document(capsys.readouterr().out, "RankTable")
        assert (document["worldSize"], document["ownRanks"]) == (16, None)
        assert [device["rank"] for server in document["servers"] for device in server["devices"]] == list(range(16))


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["ranktable", "check", "TABLE", "--devices", "4"], 1, "Trainer"),
        (["ranktable", "check", "TABLE", "--devices", "16.5"], 2, "Usage"),
        (["ranktable", "show", "/no/table"], 2, "Usage"),
        (["ranktable", "check"], 2, "Usage"),
        (["ranktabel", "check"], 2, "Usage"),
        (["inspect", "/no/run"], 2, "Usage"),
        (["data", "verify", "/no/data"], 2, "Usage"),
        (["data", "verify", "/", "--workers", "1.5"], 2, "Usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_a_document_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, reason: str
) -> None:
    path = written(tmp_path, server_list(8, 8))
    assert main([*(path if word == "TABLE" else word for word in words), "--json"]) == code
    out, err = capsys.readouterr()
    error = one_document(out, "Error")
    assert (error["code"], error["reason"]) == (code, reason)
    assert err.startswith(f"error: {error['message']}")


def test_a_pod_is_found_in_the_table_or_reported_as_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, server_list(2, 2))
    monkeypatch.setenv("POD_IP", "10.244.0.2")
    assert main(["ranktable", "check", path]) == 0
    assert "this pod has ranks 2 to 3" in capsys.readouterr().out
    assert main(["ranktable", "show", path]) == 0
    assert "\nranks 2 to 3, this pod\n" in capsys.readouterr().out
    monkeypatch.setenv("POD_IP", "10.244.0.7")
    assert main(["ranktable", "check", path]) == 1
    assert "does not contain this pod" in capsys.readouterr().err


def test_a_name_that_would_break_a_line_or_cannot_be_printed_is_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = server_list(2)
    table["server_list"][0]["server_id"] = "a\nb\ud800"
    path = written(tmp_path, table)
    assert main(["ranktable", "show", path]) == 0
    assert '  server_id "a\\nb\\ud800"\n' in capsys.readouterr().out
    monkeypatch.setenv("POD_IP", "10.244.0.7")
    assert main(["ranktable", "check", path]) == 1
    message = capsys.readouterr().err
    assert 'it has "a\\nb\\ud800"/10.244.0.1, looked for' in message
    assert len(message.splitlines()) == 1


def test_mistakes_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, half = written(tmp_path, server_list(2)), written(tmp_path, '{"status": ', "half.json")
    for words, code, message in (
        (["check", path, "--devices", "4"], 1, f"{path}: has 2 devices, not 4"),
        (["check", path, "--devices", "0"], 2, "--devices"),
        (["check", str(tmp_path / "none")], 2, "No such file or directory; give a rank table's file"),
        (["show", str(tmp_path)], 2, "Is a directory"),
        (["show", half], 1, "not valid JSON at line 1 column 12: half written?"),
        (["show"], 2, "PATH"),
        (["explain", path], 2, "explain"),
    ):
        assert main(["ranktable", *words]) == code
        output = capsys.readouterr()
        assert message in output.err
        assert len(output.err.splitlines()) == 1
        assert not output.out
