import pytest


@pytest.fixture(scope="session")
def timm():
    """timm, as the networks import it."""
    from fadepth_core.models.layers.backbone import import_timm

    try:
        return import_timm()
    except ImportError as error:
        pytest.skip(f"timm cannot be imported: {error}")
