"""The source paper's tables, what they say, and a re-reading of them."""
