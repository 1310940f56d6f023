"""FA-Depth: fast, accurate, self-supervised monocular depth. This package knows nothing of ROS.

`fadepth_core.models` holds what is learned, `fadepth_core.runtime` how it runs. Importing this package is cheap: nothing
heavy (torch, openvino) is imported until the module that needs it is.
"""

__version__ = "0.1.0"
