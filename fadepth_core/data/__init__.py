"""Data sets read from files, one module each. They yield `Sample` (training) or `LabelledImage` (evaluation).

Rendered data sets are in `fadepth_core.synthetic`.
"""

from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import LabelledImage, Sample, collate

__all__ = ["DataError", "LabelledImage", "Sample", "collate"]
