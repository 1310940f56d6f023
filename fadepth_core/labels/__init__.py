"""Algorithms that measure depth or motion in recordings, as labels for training."""
