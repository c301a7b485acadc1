"""Pictures: CEG against scale, runs, ladders, classes, scenarios, attention patterns, scores, kernels."""
