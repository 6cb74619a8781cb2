"""Parameters and FLOPs."""
