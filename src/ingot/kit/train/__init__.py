"""Training: items and their order, objectives, the one loop, checkpoints, curves."""
