"""Records, summarizes, ablates and plots the SE gates of a trained detector."""
