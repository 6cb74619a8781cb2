"""Checks a COCO-format data set, writes a corrected copy, and finds duplicate images."""
