"""Models: attention, feed-forward layers, LSTM, losses, optimizers, their FLOP."""
