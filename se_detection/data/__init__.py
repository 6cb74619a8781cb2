"""Data sets: COCO-format files, the training loader and the built-in toy set."""
