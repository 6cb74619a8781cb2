"""A run folder: file names, record, config, metrics, checkpoints, and the trained detector."""
