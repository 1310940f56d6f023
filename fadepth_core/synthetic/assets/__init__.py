"""Scenes made of 3D models from files: Gazebo worlds, and streets and rooms composed of the models of a folder.

`meshes` and `sdf` read files as parts. `stage` converts parts to geometry, materials and one texture atlas for the
renderer. `models` assigns the models of a folder to roles, e.g. vehicle or furniture. `world`, `street` and `room`
build scenes of models. `dataset` yields samples of these scenes.
"""
