"""The ROS 2 node around `fadepth_core`. Handles topics, parameters and messages; depth is computed in `fadepth_core`."""
