"""Rendered scenes with exact depth and camera motion: the renderer, and the data sets drawn by it."""
