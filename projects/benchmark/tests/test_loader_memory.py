import pickle

from .. import loader_memory as module
from ..loader_memory import OBJECTS, OURS, loader_memory, memory_table

IMAGES = 6000


def test_workers_share_a_packed_data_set_but_copy_a_list_of_objects() -> None:
    """Reading an object changes its reference count, which writes to its memory page."""
    rows = {row.storage: row for row in loader_memory(IMAGES, [2])}
    packed = sum(len(pickle.dumps(image, protocol=-1)) for image in module._random_entries(IMAGES)) / 2**20
    assert rows[OURS].data_set == packed > 3
    assert rows[OBJECTS].grown > 3 * rows[OURS].grown
    assert rows[OBJECTS].grown > 2 * packed
    assert f"{rows[OBJECTS].grown:.0f}" in memory_table(list(rows.values()))
