"""Rendered scenes behind `fadepth_core.data.synthetic`: textures, meshes, street and room layouts, and the rasteriser."""
