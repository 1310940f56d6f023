"""FA-Depth: fast, accurate, self-supervised monocular depth. This package knows nothing of ROS.

`from fadepth_core import DepthEngine` is the inference API; `docs/architecture.md` lists the packages. Importing this package is
cheap: torch and the inference libraries are imported by the modules that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fadepth_core.runtime.engine import DepthEngine

__version__ = "0.1.0"
__all__ = ["DepthEngine", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "DepthEngine":
        from fadepth_core.runtime.engine import DepthEngine

        return DepthEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
