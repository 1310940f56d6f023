"""Data sets of rendered scenes with exact depth and camera motion.

`street` and `room` build random scenes from the shapes and surfaces of `rendering`. `dataset` yields samples of these
scenes. `assets` does the same with 3D models from files.
"""
