"""COCO evaluation of boxes, masks, keypoints and stuff, with its figures in a file."""
