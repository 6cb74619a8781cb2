"""For maintainers."""
