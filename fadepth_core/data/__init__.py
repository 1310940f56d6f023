"""Data sets: one file each, all yielding the same `Sample` (training) or `LabelledImage` (evaluation)."""

from fadepth_core.common.errors import DataError
from fadepth_core.common.sample import LabelledImage, Sample, collate

__all__ = ["DataError", "LabelledImage", "Sample", "collate"]
