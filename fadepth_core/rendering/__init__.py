"""Software renderer: images, exact depth and materials of triangle meshes, on a CPU with numba.

`raster` renders triangles. `textures` and `mesh` provide surfaces and shapes, `occlusion` the darkening of corners.
`synthetic` builds scenes of them.
"""
