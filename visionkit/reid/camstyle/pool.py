"""A pool of earlier translations, shown to the discriminator in place of some of the newest ones."""

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """Keeps up to ``size`` earlier images (Shrivastava et al., CVPR 2017, section 2.3; Zhu et al., section 4).

    The kept images are a buffer, hence part of every checkpoint: a resumed run goes on as if it had never stopped.

    Args:
        size: Number of images kept; 0 makes the pool hand everything through.
    """

    images: Tensor

    def __init__(self, size: int = 50) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.empty(0))

    def query(self, images: Tensor) -> Tensor:
        """Exchanges images with the pool.

        While there is room an image is kept and returned. Afterwards it is returned with probability 1/2; otherwise it
        takes the place of a random kept one, which is returned. Draws from torch's global generator on the CPU.

        Args:
            images: (B, C, H, W), detached.

        Returns:
            As many images, (B, C, H, W).
        """
        if self.size == 0:
            return images
        return torch.stack([self._exchange(image) for image in images])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) == 0:
            self.images = image[None].clone()
            return image
        if len(self.images) < self.size:
            self.images = torch.cat([self.images, image[None]])
            return image
        if torch.rand(()) < 0.5:
            return image
        place = int(torch.randint(self.size, ()))
        kept = self.images[place].clone()
        self.images[place] = image
        return kept

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # The number of kept images is part of the state, so the buffer takes the stored shape.
        if f"{prefix}images" in state_dict:
            self.images = torch.empty_like(state_dict[f"{prefix}images"], device=self.images.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
