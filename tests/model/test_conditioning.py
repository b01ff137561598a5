"""The six numbers of SDXL's size conditioning."""

import pytest
import torch

from worker.model.conditioning import time_ids


def test_order_is_original_size_crop_target_size_each_height_first():
    ids = time_ids((768, 1024), (0, 128), (512, 640))
    assert ids.dtype == torch.float32
    assert ids.tolist() == [768, 1024, 0, 128, 512, 640]


def test_a_batch_gives_one_row_a_picture():
    ids = time_ids([(768, 1024), (100, 200)], [(0, 128), (1, 2)], [(512, 640), (3, 4)])
    assert ids.tolist() == [[768, 1024, 0, 128, 512, 640], [100, 200, 1, 2, 3, 4]]


@pytest.mark.parametrize("crop", [(0,), [(0, 0)], [[(0, 0)]]])
def test_what_is_no_pair_is_refused(crop: object):
    with pytest.raises(ValueError, match="must be pairs"):
        time_ids((768, 1024), crop, (512, 640))  # type: ignore[arg-type]
