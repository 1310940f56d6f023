"""Errors shared by the data sets and their callers."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file or folder and the reason."""
