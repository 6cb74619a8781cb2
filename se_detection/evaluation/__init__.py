"""COCO evaluation of boxes, masks, keypoints and stuff, with its metrics in a file."""
