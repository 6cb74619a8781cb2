"""What the gates of a trained detector do: recorded, summarised, ablated and drawn."""
