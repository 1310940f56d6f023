"""Fixtures of all tests."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _restore_torch_threads():
    """Restore torch's number of threads, which the torch backend and `fadepth evaluate` set for the whole process.

    Training with more threads than free processor cores is ten times slower, because the threads wait for each other.
    """
    torch = sys.modules.get("torch")
    threads = torch and torch.get_num_threads()
    yield
    if torch:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def timm():
    """timm, imported as the networks import it. Tests that need it are skipped if it is not installed."""
    from fadepth_core.models.layers.backbone import import_timm

    try:
        return import_timm()
    except ImportError as error:
        pytest.skip(f"timm cannot be imported: {error}")
