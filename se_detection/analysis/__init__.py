"""Parameters and FLOPs, and what the gates of a trained detector do."""
