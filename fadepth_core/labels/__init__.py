"""Algorithms that measure depth or motion in recordings, for training to learn from."""
