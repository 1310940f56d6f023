"""Software renderer, and data sets of rendered scenes with exact depth and camera motion.

`raster` renders triangles. `textures` and `mesh` provide surfaces and shapes, of which `street` and `room` build random
scenes. `dataset` yields samples of these scenes. `assets` does the same with 3D models from files.
"""
