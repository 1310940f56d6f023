import pytest

from fadepth_core.runtime.checkpoint import Checkpoint
from fadepth_core.runtime.network import load_network


@pytest.fixture(scope="session")
def checkpoint():
    """The shipped checkpoint."""
    return Checkpoint()


@pytest.fixture(scope="session")
def network(checkpoint):
    """The shipped checkpoint's network in PyTorch."""
    return load_network(checkpoint)
