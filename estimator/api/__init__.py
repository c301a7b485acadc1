"""The Python API: each function answers as the command of its name does, and returns a result that prints."""
