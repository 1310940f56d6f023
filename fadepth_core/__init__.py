"""FA-Depth: fast, accurate, self-supervised monocular depth. This package does not use ROS.

`from fadepth_core import DepthEngine, FrameRequest` is the inference API; `docs/architecture.md` lists the packages. Importing
this package is fast: torch and the inference libraries are imported only by the modules that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fadepth_core.runtime.engine import DepthEngine, FrameRequest

    __version__: str

__all__ = ["DepthEngine", "FrameRequest", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("DepthEngine", "FrameRequest"):
        from fadepth_core.runtime import engine

        return getattr(engine, name)
    if name == "__version__":
        from fadepth_core.common.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
