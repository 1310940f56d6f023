"""Scenes made of 3D models from files: Gazebo worlds, and streets and rooms composed of the models of a folder.

Files become parts (`meshes`, `sdf`), parts become geometry, materials and one texture atlas for the renderer (`stage`).
`models` assigns a folder's models to roles, e.g. vehicle or furniture; `world`, `street` and `room` build scenes of
them; `dataset` yields samples.
"""
