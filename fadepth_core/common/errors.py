"""Errors shared by the data sets and their callers."""


class DataError(ValueError):
    """A file, folder or option of a data set cannot be used. The message names it and gives the reason."""
