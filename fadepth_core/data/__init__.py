"""Data sets: one file each, all yielding the same `Sample`."""

from fadepth_core.data.sample import Sample, collate

__all__ = ["Sample", "collate"]
