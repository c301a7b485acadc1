"""The source paper: its tables, what they say, and a re-reading of them."""
