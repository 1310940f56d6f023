"""Data sets, one module each, all yielding `Sample` (training) or `LabelledImage` (evaluation)."""

from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import LabelledImage, Sample, collate

__all__ = ["DataError", "LabelledImage", "Sample", "collate"]
