"""A run folder: its file names, record, config, metrics, checkpoints, and the trained detector in it."""
