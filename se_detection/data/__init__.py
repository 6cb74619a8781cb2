"""Data sets: a person's own COCO-format files, and the toy set."""
