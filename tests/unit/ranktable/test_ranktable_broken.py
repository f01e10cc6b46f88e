"""A damaged table is read, or refused in one line that a user can act on."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.ranktable.test_ranktable import FORMATS, anything, changed, places
from tests.unit.ranktable.test_ranktable_jobs import FIXED, start, volume, volume_with
from tests.unit.ranktable.test_ranktable_recorded import EXPECTED, recorded
from trainer.cli import main
from trainer.shared.errors import TrainerError
from trainer.topology import Visible

__all__ = ["volume"]

FIELD = re.compile(
    r"\b(status|version|server_count|server_list|server_id|host_ip|container_ip|device|device_id|device_ip|rank_id"
    r"|super_device_id|super_pod_list|super_pod_id|rank_count|rank_list|local_id|level_list|net_layer|net_instance_id"
    r"|group_count|group_list|instance_count|device_count|instance_list|pod_name|devices|the table)\b"
)
RULE = re.compile(r" is missing$| must | is not | appears \d+ times| is in no ")
SPECIAL = ["fe80::1%\n", "::1", "\n", "0" * 19, 10**400, 1e308, float("nan"), "job-worker-\u0664", [[]], {"a": {}}]
"""Values that some parser would accept."""
VALID = [json.dumps(make(2, 3)) for make in FORMATS.values()]
RECORDED = [text for name in EXPECTED for text in recorded(name)]
ENVIRONMENTS = [
    {},
    {"POD_IP": "10.244.0.1", "HOST_IP": "10.0.0.1"},
    {"POD_UID": "0a895a9b-f17f-4824-a3f0-346c0a7804ea", "POD_NAME": "job-worker-0"},
    {"POD_NAME": "job\nworker\ud800"},
]

RUBBISH = st.binary(max_size=40) | st.sampled_from(
    [b'"', b"\\", b"[", b"{", b"}", b"\xff", b"1e999", b"-", b"\x00", b"\xef\xbb\xbf"]
)


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Draw a table with exchanged values, or with damaged bytes."""
    text = draw(st.sampled_from(VALID + RECORDED))
    if draw(st.booleans()):
        table = json.loads(text)
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.sampled_from(places(table)[1:]))
            table = changed(table, *at, to=draw(st.one_of(anything, st.just(...), st.sampled_from(SPECIAL))))
            if len(places(table)) < 2:
                break
        return json.dumps(table).encode()
    raw = text.encode()
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(raw)))
        end = draw(st.integers(begin, min(len(raw), begin + 60)))
        raw = raw[:begin] + draw(RUBBISH) + raw[end:]
    return raw


def run(*arguments: str) -> tuple[int, str, str]:
    """Return the exit code of the command line, and its output to terminals that accept only UTF-8."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    for terminal in (out, err):
        terminal.seek(0)
    return code, out.read(), err.read()


def assert_one_line(reason: str) -> None:
    assert reason.isprintable(), repr(reason)
    assert len(reason) < 1500, reason


def assert_started_or_refused(path: Path, environ: dict[str, str]) -> None:
    try:
        node = start(path, environ, Visible("cpu", ()))
    except TrainerError as error:
        assert_one_line(str(error))
    else:
        assert sorted(worker.local_rank for worker in node.workers) == list(range(len(node.workers)))
        assert node.master_addr.isprintable()


@settings(FIXED, max_examples=250)
@given(content=mangled() | st.binary(max_size=200))
def test_no_table_crashes_the_trainer_and_each_refusal_is_one_line(volume: Path, content: bytes) -> None:
    with volume_with(volume, content) as path:
        for words in (["check"], ["show"], ["show", "--json"]):
            code, out, err = run("ranktable", *words, str(path))
            assert (code, bool(err)) in {(0, False), (1, True)}
            assert all(line.isprintable() for line in (out + err).splitlines())
            if code:
                assert_one_line(err.removesuffix("\n"))
        for environ in ENVIRONMENTS:
            assert_started_or_refused(path, environ)


@settings(FIXED, max_examples=250)
@given(data=st.data())
def test_the_refusal_of_a_completed_table_names_the_field_its_value_and_the_rule(
    volume: Path, data: st.DataObject
) -> None:
    table = json.loads(data.draw(st.sampled_from(VALID)))
    at = data.draw(st.sampled_from([place for place in places(table)[1:] if place != ("status",)]))
    to = data.draw(st.one_of(anything, st.just(...), st.sampled_from(SPECIAL)))
    with volume_with(volume, json.dumps(changed(table, *at, to=to)).encode()) as path:
        code, _, err = run("ranktable", "check", str(path))
    if code:
        reason = err.removeprefix(f"error: {path}: ").removesuffix("\n")
        assert FIELD.search(reason), reason
        assert RULE.search(reason), reason
        if reason.startswith(f"{name_of(at)} "):
            assert "is missing" in reason if to is ... else json.dumps(to)[:70] in reason
        elif "is missing" not in reason:  # another field contradicts the changed one
            assert re.search(r'"|\d|\[|\{|null|true|false|NaN|Infinity', reason), reason


def name_of(place: tuple[str | int, ...]) -> str:
    """Return the name in a refusal, such as `server_list[0].device[1].rank_id`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")
