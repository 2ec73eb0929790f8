"""Translation of files: sizes, skipping, damaged originals."""

import numpy as np
import pytest
import torch
from PIL import Image
from reid_trees import write_image

from visionkit.reid.camstyle.data import image_to_tensor
from visionkit.reid.camstyle.translate import translate_files


class Negative(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return -x


@pytest.fixture
def files(tmp_path):
    paths = [str(write_image(tmp_path / f"{i}.png", i, size=(16 + 4 * i, 8))) for i in range(5)]
    (tmp_path / "out").mkdir()
    return paths, [tmp_path / "out" / f"{i}.jpg" for i in range(5)]


def test_each_file_is_translated_at_its_own_size(files):
    paths, outputs = files
    assert translate_files(Negative(), paths, outputs, image_size=(16, 8), batch_size=2) == 5
    for path, output in zip(paths, outputs):
        assert Image.open(output).size == Image.open(path).size
    # the first needs no resizing, so that JPEG alone stands between it and the negative
    expected = -image_to_tensor(Image.open(paths[0]))
    assert (image_to_tensor(Image.open(outputs[0])) - expected).abs().mean() < 0.1


def test_a_batch_that_is_whole_is_skipped_and_the_others_keep_their_grouping(files):
    paths, outputs = files
    translate_files(Negative(), paths, outputs, image_size=(16, 8), batch_size=2)
    before = [output.read_bytes() for output in outputs]
    outputs[3].unlink()
    network = Negative()
    assert translate_files(network, paths, outputs, image_size=(16, 8), batch_size=2) == 2
    assert network.batches == [2]
    assert [output.read_bytes() for output in outputs] == before


def test_a_damaged_original_is_left_out(files):
    paths, outputs = files
    for path in (paths[1], paths[4]):
        open(path, "wb").close()
    assert translate_files(Negative(), paths, outputs, image_size=(16, 8), batch_size=2) == 3
    assert [output.is_file() for output in outputs] == [True, False, True, True, False]
    assert not np.array_equal(Image.open(outputs[0]), Image.open(paths[0]))
