"""Configs: the keys of this project, reading, and the checks of values."""
