"""The ROS 2 node around `fadepth_core`. Knows topics, parameters and messages; nothing of how depth is computed."""
