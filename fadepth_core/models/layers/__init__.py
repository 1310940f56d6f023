"""Building blocks of the depth and pose networks, one idea per file."""
