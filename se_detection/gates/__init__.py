"""What the SE gates of a trained detector do: recorded, summarised, ablated and plotted."""
