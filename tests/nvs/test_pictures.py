"""Pictures of rendered views."""

import numpy as np
import torch
from PIL import Image

from visionkit.nvs.pictures import (
    contact_sheet,
    depth_picture,
    depth_range,
    save_picture,
    side_by_side,
    stacked,
    view_sheet,
)


def test_pictures_side_by_side_on_a_sheet(tmp_path):
    depth = depth_picture(np.array([[1.0, 2.0, 50.0]]), 1, 10).astype(int).sum(-1)
    assert depth[0, 0] > depth[0, 1] > depth[0, 2]
    row = side_by_side([np.zeros((5, 4, 3), np.uint8)] * 2)
    assert row.shape == (5, 12, 3)
    sheet = contact_sheet([row] * 5, columns=4)
    assert sheet.shape == (2 * 9 + 4, 4 * 16 + 4, 3)
    save_picture(sheet, tmp_path / "x" / "a.jpg")
    assert Image.open(tmp_path / "x" / "a.jpg").size == sheet.shape[1::-1]


def test_rows_are_parted_by_white_and_end_with_the_last():
    sheet = stacked([np.zeros((5, 4, 3), np.uint8), np.zeros((6, 2, 3), np.uint8)])
    assert sheet.shape == (15, 4, 3) and (sheet[5:9] == 255).all() and (sheet[9:, 2:] == 255).all()
    assert not sheet[:5].any() and not sheet[9:, :2].any()


def test_a_pair_of_views_is_parted_by_less_than_two_pairs():
    row = view_sheet(torch.zeros(3, 3, 2, 5), torch.zeros(3, 3, 2, 5), columns=2)
    assert "".join("#-"[int(each)] for each in row[0, :, 0] == 255) == "#####" + 2 * "--------#####----#####"


def test_depth_colours_are_spread_over_what_is_seen():
    depth = np.linspace(4, 6, 100).reshape(10, 10)
    assert depth_picture(depth, *depth_range([depth + 40, depth], 0.5, 10.0)).max(axis=-1).min() > 100
    assert depth_range([np.full((10, 10), 50.0)], 0.5, 10.0) == (0.5, 10.0)  # nothing was fitted
