"""Scenes made of 3D models from files: worlds of Gazebo as they are, and streets and rooms put together from a folder.

Files become parts (`meshes`, `sdf`), parts become geometry, materials and one atlas for the renderer (`stage`); `models`
sorts a folder's models by what they can stand for; `world`, `street` and `room` draw scenes; `dataset` yields samples.
"""
