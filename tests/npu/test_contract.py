"""The product uses only what the real torch_npu has; uses that cannot be checked this way are listed."""

from functools import cache
from pathlib import Path

import pytest

from tests.npu.contract import wheels
from tests.npu.contract.library import Library
from tests.npu.contract.uses import Use, collect, strings
from tests.npu.contract.verdict import differences, unknown_variables, unverifiable, violations
from trainer.devices import npu_profile

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ascend.md"
PRODUCT = sorted(path for folder in ("trainer", "launcher") for path in (ROOT / folder).rglob("*.py"))
STAND_INS = sorted(path.parent for path in (ROOT / "tests" / "npu").rglob("torch_npu/__init__.py"))
# Uses that must be collected from the product. Without them the collection is broken and the rest proves nothing.
KNOWN_USES = {
    "torch_npu.npu.set_device",
    "torch_npu.npu.set_compile_mode",
    "torch_npu.npu.conv.allow_hf32",
    "torch_npu.npu.matmul.allow_hf32",
    "torch_npu.npu.NPUGraph",
    "torch_npu.npu.NPUGraph().replay",
    "torch_npu.npu.graph",
    "torch_npu.npu.graph_pool_handle",
    "torch_npu.npu.amp.autocast",
    "torch_npu.npu.amp.GradScaler",
    "torch_npu.npu.amp.GradScaler().unscale_",
    "torch_npu.npu.get_rng_state",
    "torch_npu.profiler.ProfilerActivity.NPU",
    "torch_npu.profiler.profile().step",
    "torch_npu.profiler.profiler.analyse",
    "torch_npu.profiler.schedule",
    "torch_npu.profiler.tensorboard_trace_handler",
    "torch_npu.optim.NpuFusedSGD",
    "torch_npu.optim.NpuFusedSGD().zero_grad",
}


@cache
def product() -> list[Use]:
    return collect(PRODUCT, ROOT)


@pytest.fixture(scope="module", params=wheels.pins())
def library(request: pytest.FixtureRequest) -> Library:
    try:
        return Library.of_wheel(wheels.wheel(request.param))
    except wheels.DownloadError as error:
        pytest.fail(str(error), pytrace=False)


def test_the_products_uses_of_torch_npu_are_collected_from_its_code() -> None:
    assert {path for use in product() for path in use.paths} >= KNOWN_USES


def test_the_product_uses_only_what_the_real_torch_npu_has(library: Library) -> None:
    assert not violations(product(), library)


@pytest.mark.parametrize("stand_in", STAND_INS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_stand_in_has_only_what_the_real_torch_npu_has(library: Library, stand_in: Path) -> None:
    assert not differences(stand_in, library)


def test_the_files_of_a_profile_that_the_product_reads_are_named_in_torch_npu(library: Library) -> None:
    read = (npu_profile.RESULTS, npu_profile.TRACE, npu_profile.KERNELS, npu_profile.KERNEL_TYPE)
    assert not [name for name in read if not library.mentions(name)]
    # The unit is in brackets, and so no part of a word.
    assert library.mentions(npu_profile.KERNEL_TIME.partition("(")[0])


def test_variables_that_torch_npu_does_not_know_are_listed_as_unproven(library: Library) -> None:
    page = PAGE.read_text(encoding="utf-8")
    unknown = unknown_variables(strings(PRODUCT, ROOT), library)
    assert not {f"{place}: {name}" for name, place in unknown.items() if f"`{name}`" not in page}


def test_uses_of_apex_are_listed_as_unproven() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not {name for name in unverifiable(product()) if f"`{name}`" not in page}
