"""Training: the configuration, and the loop that puts data, networks and losses together."""
