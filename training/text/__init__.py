"""Text to train on: corpora, tokenizers, packed tokens."""
