"""Fixtures of all tests."""

import os
import sys

import pytest

# One thread for torch, in the processes that tests start, too; set before torch is imported. With more threads than free
# processor cores the threads wait for each other, which makes the small networks of the tests up to ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _use_one_torch_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_torch_thread():
    """Undo what the torch backend sets for the whole process: in a fixture of the module (before), in the test (after)."""
    _use_one_torch_thread()
    yield
    _use_one_torch_thread()


@pytest.fixture(scope="session")
def timm():
    """timm, imported as the networks import it. Tests that need it are skipped if it is not installed."""
    from fadepth_core.models.layers.backbone import import_timm

    try:
        return import_timm()
    except ImportError as error:
        pytest.skip(f"timm cannot be imported: {error}")
