"""Fixtures of every test that computes with torch in this process."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Compute on one thread: in steps of a few milliseconds, threads mostly wait for each other on a busy machine."""
    torch.set_num_threads(1)
