"""Shapes of models: parameters, FLOP, arms by name, sizes."""
