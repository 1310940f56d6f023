"""Serialized ROS messages to arrays and back, without ROS. The node and the recordings (bags) use the same bytes: CDR.

Does not import torch.
"""
