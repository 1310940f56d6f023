"""How a trained network runs: checkpoint, framing, exported graph, backends, and `DepthEngine`, the one door to them."""
