"""Studies: variants x seeds of detectors that are pre-trained and fine-tuned in the same way, and a report."""
