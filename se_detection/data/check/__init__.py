"""The health of a COCO-format data set, a corrected copy, and duplicate images."""
