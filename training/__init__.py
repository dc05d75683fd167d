"""The mathematics of a training step, and the machine that computes it."""
