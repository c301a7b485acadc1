"""Seconds of a training step or a decoded token: hardware, counts of work, the step-time model."""
