"""What the SE gates of a trained detector do: recorded, summarized, ablated and plotted."""
