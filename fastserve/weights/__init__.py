"""Which model, which file, and what the file says."""
