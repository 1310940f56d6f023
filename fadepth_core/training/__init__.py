"""Training: configuration, loader, loop, run folder, teachers, ablations."""
