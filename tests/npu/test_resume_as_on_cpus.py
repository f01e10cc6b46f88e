"""The trainer's tests of stop, kill and resume on CPUs, unchanged, with emulated NPUs as devices.

In fp32 too. PNAS_TEST_DEVICE=npu runs `tests/local/test_resume.py` on real NPUs, npu-emulated on these.
"""

from collections.abc import Iterator

import pytest

from tests.local import conftest
from tests.local.test_resume import (
    stopped,
    test_another_number_of_devices_sees_each_image_of_the_epoch_once,
    test_sigterm_saves_and_ends_with_75_and_the_run_can_continue,
    whole,
)

__all__ = [
    "stopped",
    "test_another_number_of_devices_sees_each_image_of_the_epoch_once",
    "test_sigterm_saves_and_ends_with_75_and_the_run_can_continue",
    "whole",
]


@pytest.fixture(scope="module", autouse=True)
def _npus(npus: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in npus.items():
            patch.setenv(name, value)
        patch.setitem(conftest.SMALL, "--device", "npu")
        patch.setitem(conftest.SMALL, "--precision", "fp32")
        yield
