import functools

import pytest

from torchvision_operators import define_torchvision_operators

_define_once = functools.cache(define_torchvision_operators)


@pytest.fixture(scope="session")
def timm():
    """timm; a torchvision built for another torch lacks operators it looks up on import, so they are declared here."""
    try:
        import timm
    except ImportError as error:
        pytest.skip(f"timm cannot be imported: {error}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _define_once()
        import timm
    return timm
