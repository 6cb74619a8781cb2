"""Which of two lists of detections of one picture mean the same object."""

from detectron2.structures import Instances, pairwise_iou

SAME_OBJECT = 0.5


def pair_detections(first: Instances, second: Instances) -> list[tuple[int, int]]:
    """Pairs detections of one class by overlap (IoU of 0.5 or more), those of the first with the highest score first.

    Args:
        first: with `pred_boxes`, `pred_classes` and `scores`.
        second: the same, for the same picture in the same pixels.

    Returns:
        places in the first and the second; each is in one pair at most.
    """
    overlap = pairwise_iou(first.pred_boxes, second.pred_boxes)
    overlap[first.pred_classes[:, None] != second.pred_classes[None]] = 0
    pairs = []
    for place in first.scores.argsort(descending=True, stable=True).tolist():
        if not len(second) or overlap[place].max() < SAME_OBJECT:
            continue
        other = int(overlap[place].argmax())
        overlap[:, other] = 0
        pairs.append((place, other))
    return pairs
