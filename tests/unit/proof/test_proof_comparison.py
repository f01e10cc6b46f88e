"""Comparisons of devices, on tables of figures."""

import random

import pytest

from trainer.proof.check import CheckOutcome, Result
from trainer.proof.comparison import MEMORY, best_rates, compare_links, compare_models, compare_rates

MATMUL = "matmul_fp16_tflops"
SUSTAINED = "matmul_fp16_sustained_tflops"
COPY = "copy_to_device_gb_per_s"
LINK = "link_gb_per_s"
HOT = {"matmul_cold_tflops": 250.0, "matmul_warm_tflops": 140.0}


def _results(*figures: dict[str, float], places: tuple[str, ...] = ()) -> list[Result]:
    names = places or tuple(f"npu:{number}" for number in range(len(figures)))
    return [
        Result("speed", place, CheckOutcome("passed", "fast", figures=dict(one)), 1.0)
        for place, one in zip(names, figures, strict=True)
    ]


def _failed(results: list[Result]) -> list[str]:
    return [result.place for result in results if result.outcome.verdict == "failed"]


def _rates(name: str, *rates: float) -> list[Result]:
    return _results(*({name: rate} for rate in rates))


@pytest.mark.parametrize(
    ("results", "slow"),
    [
        ([], []),
        (_rates(MATMUL, 256.0), []),
        (_rates(MATMUL, 256.0, 250.0), []),
        (_rates(MATMUL, 256.0, 150.0), ["npu:1"]),
        (_rates(MATMUL, 250.0, 251.0, 249.0, 200.0, 252.0, 250.0, 248.0, 250.0), []),
        (_rates(MATMUL, 250.0, 251.0, 249.0, 170.0, 252.0, 250.0, 248.0, 250.0), ["npu:3"]),
        (_rates(MATMUL, 100.0, 250.0, 250.0, 90.0), ["npu:0", "npu:3"]),
        (_rates(COPY, 25.0, 14.0), []),
        (_rates(COPY, 25.0, 11.0), ["npu:1"]),
        (_rates(SUSTAINED, 250.0, 120.0), []),
        (_rates(SUSTAINED, 250.0, 90.0), ["npu:1"]),
        (_results({MATMUL: 250.0}, {MATMUL: 100.0, SUSTAINED: 45.0}), ["npu:1"]),
        (_rates("link_4_mib_sustained_gb_per_s", 20.0, 1.0), []),
        (_results({MATMUL: 250.0}, {MATMUL: 180.0, SUSTAINED: 175.0}), ["npu:1"]),
        (_results({MATMUL: 250.0}, {MATMUL: 180.0, SUSTAINED: 150.0}), []),
        (_results({MATMUL: 250.0, SUSTAINED: 90.0}, {MATMUL: 180.0}), ["npu:1"]),
        (_rates("link_latency_us", 10.0, 50.0), []),
        (_rates("memory_mib", 10.0, 50.0), []),
        (_rates("matmul_warm_tflops", 250.0, 180.0), ["npu:1"]),
        (_results(HOT), ["npu:0"]),
        (_results({**HOT, "matmul_warm_tflops": 200.0}), []),
        (_results({MATMUL: 250.0}, {}, {"matmul_bf16_tflops": 9.0}), []),
        (_results({MATMUL: 250.0, COPY: 20.0}, {MATMUL: 249.0, COPY: 2.0}), ["npu:1"]),
    ],
)
def test_a_rate_far_below_the_median_of_the_others_is_slow(results: list[Result], slow: list[str]) -> None:
    compared = compare_rates(results)
    assert _failed(compared) == slow
    assert [result.place for result in compared] == [result.place for result in results]
    assert all(result.place in result.outcome.measured for result in compared if result.place in slow)


def test_the_best_rates_of_two_turns_count_and_a_failure_stands() -> None:
    first, second = _results({MATMUL: 250.0, "link_latency_us": 9.0}, {MATMUL: 260.0, "link_latency_us": 5.0})
    best = best_rates(first, second)
    assert (best.place, best.outcome.figures) == ("npu:0", {MATMUL: 260.0, "link_latency_us": 9.0})
    broken = Result("speed", "npu:0", CheckOutcome("unfinished", "no"), 1.0)
    assert best_rates(first, broken) == best_rates(broken, first) == broken


def test_devices_that_failed_neither_count_nor_change() -> None:
    results = _rates(MATMUL, 250.0, 249.0)
    broken = Result("speed", "npu:2", CheckOutcome("failed", "no", figures={MATMUL: 9000.0}), 1.0)
    assert compare_rates([*results, broken]) == [*results, broken]


def test_the_noise_of_equal_devices_is_no_finding() -> None:
    generator = random.Random(5)
    for _ in range(1000):
        results = _rates(MATMUL, *(250 * generator.gauss(1, 0.03) for _ in range(8)))
        assert compare_rates(results) == results


LINK_1_2 = "the link between npu:1 and npu:2 is slow"
PAIRS = ("npu:0 npu:1", "npu:2 npu:3", "npu:1 npu:2", "npu:3 npu:0")


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ((20.0, 21.0, 20.0, 19.0), {}),
        ((20.0, 21.0, 4.0, 19.0), {"npu:1 npu:2": LINK_1_2}),
        (
            (20.0, 8.0, 0.2, 19.0),
            dict(zip(PAIRS[1:3], ("the link between npu:2 and npu:3 is slow", LINK_1_2), strict=True)),
        ),
        ((4.0, 21.0, 4.0, 19.0), dict.fromkeys(PAIRS[::2], "npu:1 is slow, with each of its partners")),
        ((0.02, 21.0, 20.0, 0.02), dict.fromkeys((PAIRS[0], PAIRS[3]), "npu:0 is slow, with each of its partners")),
    ],
)
def test_a_device_slow_in_both_pairings_is_the_slow_one_else_it_is_the_link(
    rates: tuple[float, ...], words: dict[str, str]
) -> None:
    compared = compare_links(_results(*({LINK: rate} for rate in rates), places=PAIRS))
    told = {result.place: result.outcome.measured for result in compared if result.outcome.verdict == "failed"}
    assert told.keys() == words.keys()
    assert all(told[place].endswith(f": {text}") for place, text in words.items())


@pytest.mark.parametrize(
    ("hangs", "cause"),
    [
        ((True, False, True, False), "npu:1"),
        ((True, False, False, True), "npu:0"),
        ((False, False, True, False), None),  # the link, or one of both
        ((True, True, True, True), None),
        ((True, False), None),  # of one pairing only
    ],
)
def test_a_device_that_hangs_in_both_pairings_is_named(hangs: tuple[bool, ...], cause: str | None) -> None:
    results = [
        Result("link", place, CheckOutcome("unfinished" if hang else "passed", "no answer"), 1.0)
        for hang, place in zip(hangs, PAIRS, strict=False)
    ]
    text = f"{cause} does not finish with any of its partners: no answer" if cause else "no answer"
    compared = compare_links(results)
    assert [result.outcome.verdict for result in compared] == [result.outcome.verdict for result in results]
    assert [result.outcome.measured for result in compared] == [text if hang else "no answer" for hang in hangs]


def test_the_only_link_is_slow_below_a_rate_that_any_network_reaches() -> None:
    (fast,) = compare_links(_results({LINK: 1.5}, places=PAIRS[:1]))
    assert fast.outcome.verdict == "passed"
    (slow,) = compare_links(_results({LINK: 0.01}, places=PAIRS[:1]))
    assert slow.outcome.measured.endswith("the link between npu:0 and npu:1 is slow")


@pytest.mark.parametrize(
    ("models", "other"),
    [
        ((("910B1", 65536.0),) * 4, []),
        ((("910B1", 65536.0), ("910B1", 65400.0)), []),
        ((("910B1", 65536.0), ("910B1", 65536.0), ("910B3", 65536.0)), ["npu:2"]),
        ((("910B1", 65536.0), ("910B3", 65536.0)), ["npu:0", "npu:1"]),
        ((("910B1", 65536.0), ("910B1", 32768.0)), ["npu:1"]),
    ],
)
def test_devices_of_another_model_or_memory_are_named(models: tuple[tuple[str, float], ...], other: list[str]) -> None:
    results = [
        Result("open", f"npu:{number}", CheckOutcome("passed", name, figures={MEMORY: size}), 1.0)
        for number, (name, size) in enumerate(models)
    ]
    assert _failed(compare_models(results)) == other


@pytest.mark.parametrize(
    ("kind", "programs"), [("npu", {"hccn_tool", "npu-smi"}), ("cuda", {"nvidia-smi"}), ("cpu", set[str]())]
)
def test_the_advice_names_the_programs_of_the_kind_of_device(kind: str, programs: set[str]) -> None:
    (slow,) = compare_links(_results({LINK: 0.01}, places=(f"node1/{kind}:0 node1/{kind}:1",)))
    (hot,) = compare_rates(_results(HOT, places=(f"{kind}:7",)))
    advice = f"{slow.outcome.advice} {hot.outcome.advice}"
    assert {program for program in ("hccn_tool", "npu-smi", "nvidia-smi") if program in advice} == programs
