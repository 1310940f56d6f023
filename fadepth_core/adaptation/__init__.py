"""`fadepth adapt`: a network taught from a recording of the robot's own camera."""
