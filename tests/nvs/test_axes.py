"""The camera convention, by looking: balls on the axes must appear where the convention says."""

import numpy as np
import pytest
from nvs.captures.trees import BALLS, SIZE, draw_axes

from visionkit.nvs.cameras import Camera, look_at


def middle_of(image, channel):
    """Column and row where a colour is, in pixels; the first pixel's centre is at 0.5."""
    weight = image[..., channel] * (image.sum(-1) > 0)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


def test_x_is_right_y_is_down_z_is_forward():
    straight = Camera(np.eye(3, 4) - [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]], (40.0, 40.0), SIZE)
    image, depth = draw_axes(straight)
    centre = np.array([15, 20])
    red, green, blue = (middle_of(image, channel) - centre for channel in range(3))
    assert red == pytest.approx([10, 0], abs=0.3)  # 40 * 0.5 / 2 to the right
    assert green == pytest.approx([0, 10], abs=0.3)  # below
    assert blue == pytest.approx([0, 0], abs=0.3)
    assert depth[20, 15] == pytest.approx(2.5 - 0.15, abs=0.05)  # in front, beyond the origin


@pytest.mark.parametrize("eye", [(2, 0, 0), (-1, 1, -1.5), (0.5, -1.6, 1)])
def test_balls_appear_where_they_project_to(eye):
    camera = Camera(look_at(eye, (0, 0, 0), up=(0.1, -1, 0)), (36.0, 40.0), SIZE)
    image, _ = draw_axes(camera)
    places, channels = zip(*BALLS.values())
    pixels, seen = camera.project(np.array(places))
    assert seen.all()
    for pixel, channel in zip(pixels, channels):
        assert middle_of(image, channel) == pytest.approx(pixel, abs=0.6)


def test_what_lies_behind_beside_or_outside_is_not_seen():
    camera = Camera(np.eye(3, 4), (40.0, 40.0), SIZE)
    points = np.array([[0, 0, 2.0], [0, 0, -2], [1, 0, 0], [0.74, 0, 2], [0.76, 0, 2], [0, -0.99, 2], [0, -1.01, 2]])
    assert camera.project(points)[1].tolist() == [True, False, False, True, False, True, False]


def test_rays_are_made_on_the_device_that_is_asked_for():
    """Those of a frame of 1080 lines are 50 MB to copy."""
    camera = Camera(np.eye(3, 4), (100.0, 100.0), (3, 4))
    assert all(x.device.type == "meta" and x.shape == (12, 3) for x in camera.rays("meta"))
