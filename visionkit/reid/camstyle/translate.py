"""Translation of image files in batches."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from visionkit.files import write_image
from visionkit.progress import progress
from visionkit.reid.camstyle.data import image_to_tensor, read_or_warn, tensor_to_image


@torch.no_grad()
def translate_files(
    generator: nn.Module,
    paths: Sequence[str],
    outputs: Sequence[Path],
    image_size: Sequence[int],
    batch_size: int = 16,
    device: str = "cpu",
) -> int:
    """Writes the translation of each file, at its own size.

    Batches are fixed by the order of ``paths``; one whose files all exist is skipped. An interrupted call is therefore
    repeated bit for bit, whatever it had finished. A file that cannot be read is left out with a warning.

    Args:
        generator: A network from and to (B, 3, H, W) in [-1, 1], in eval mode.
        paths: The originals.
        outputs: The file to write for each original.
        image_size: (height, width) at which the network sees an image.
        batch_size: Number of images at a time.
        device: Device to compute on.

    Returns:
        The number of files written now.
    """
    generator = generator.to(device)
    written = 0
    with progress("translating", len(paths)) as advance:
        for start in range(0, len(paths), batch_size):
            batch = list(zip(paths[start : start + batch_size], outputs[start : start + batch_size]))
            if not all(output.is_file() for _, output in batch):
                written += _translate_batch(generator, batch, image_size, device)
            advance(len(batch))
    return written


def _translate_batch(
    generator: nn.Module, batch: list[tuple[str, Path]], image_size: Sequence[int], device: str
) -> int:
    originals = [(read_or_warn(path), output) for path, output in batch]
    originals = [(image, output) for image, output in originals if image is not None]
    if not originals:
        return 0
    height, width = image_size
    small = [image_to_tensor(image.resize((width, height), Image.Resampling.BICUBIC)) for image, _ in originals]
    translated = generator(torch.stack(small).to(device)).cpu()
    for (image, output), tensor in zip(originals, translated):
        write_image(
            tensor_to_image(tensor).resize(image.size, Image.Resampling.BICUBIC), output, format="JPEG", quality=95
        )
    return len(originals)
