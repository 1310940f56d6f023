"""What can be wrong with data."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file or folder and the reason."""
