"""One training run: configuration, budget, steps, checkpoints, evaluation, its row in the table."""
