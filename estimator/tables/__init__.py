"""Tables as files: problems, loaders of gains, runs and kernel times, atomic writing, provenance."""
