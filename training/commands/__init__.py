"""The commands of training: train, ablate, data, flops."""
