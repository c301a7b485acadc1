"""The page of `ceg report`: data from Python, scripts that draw it."""
