"""Running a trained network: checkpoints, deployment graph, export, backends, and the public API `DepthEngine`."""
