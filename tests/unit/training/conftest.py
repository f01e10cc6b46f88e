"""What holds for every test within this process."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Threads of a step that takes milliseconds wait for each other most of the time, on a busy machine all of it."""
    torch.set_num_threads(1)
