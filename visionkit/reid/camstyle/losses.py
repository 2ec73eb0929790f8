"""CycleGAN's losses: least-squares adversarial, cycle and identity.

Papers: Zhu et al., ICCV 2017 (equations 1 to 3, section 5.2 for the identity loss); Mao et al., "Least Squares
Generative Adversarial Networks", ICCV 2017.
"""

from torch import Tensor
from torch.nn.functional import l1_loss


def lsgan_loss(scores: Tensor, real: bool) -> Tensor:
    """Mean squared distance of a discriminator's scores from 1 (``real``) or 0.

    Args:
        scores: Any shape.
        real: Whether the scores should say "real".

    Returns:
        A scalar.
    """
    return ((scores - 1.0 if real else scores) ** 2).mean()


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Half the sum of the least-squares losses of real scores against 1 and of translated ones against 0.

    Scores of any shape -> a scalar.
    """
    return 0.5 * (lsgan_loss(real_scores, True) + lsgan_loss(fake_scores, False))


def cycle_loss(image: Tensor, reconstructed: Tensor, weight: float = 10.0) -> Tensor:
    """``weight`` times the mean absolute difference of an image and its translation there and back.

    (B, C, H, W) twice -> a scalar.
    """
    return weight * l1_loss(reconstructed, image)


def identity_loss(image: Tensor, translated: Tensor, cycle_weight: float = 10.0, weight: float = 0.5) -> Tensor:
    """Penalises a generator for changing an image that already has its style.

    Args:
        image: (B, C, H, W), real images of the generator's output domain.
        translated: (B, C, H, W), the generator's output for them.
        cycle_weight: The weight of `cycle_loss`.
        weight: This loss's weight relative to it.
    """
    return cycle_weight * weight * l1_loss(translated, image)
