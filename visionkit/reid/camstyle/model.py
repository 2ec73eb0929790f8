"""The CycleGAN that trains on pairs of images from two cameras, its optimisers and its schedule."""

from collections import OrderedDict
from typing import Any

import torch
from mmengine.model import BaseModel, MMSeparateDistributedDataParallel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn

from visionkit.checks import check_counts, check_numbers
from visionkit.engine.runner import bare
from visionkit.registry import MODEL_WRAPPERS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from visionkit.reid.camstyle.losses import cycle_loss, discriminator_loss, identity_loss, lsgan_loss
from visionkit.reid.camstyle.networks import PatchDiscriminator, ResnetGenerator
from visionkit.reid.camstyle.pool import ImagePool


@MODELS.register_module()
class CycleGAN(BaseModel):
    """Two generators, a to b and b to a, and a discriminator for each side.

    Args:
        generator: Options of `ResnetGenerator`.
        discriminator: Options of `PatchDiscriminator`.
        cycle_weight: Weight of the cycle losses.
        identity_weight: Weight of the identity losses, relative to ``cycle_weight``; 0 leaves them out.
        pool_size: Number of earlier translations kept for each discriminator.
    """

    def __init__(
        self,
        generator: dict[str, Any] | None = None,
        discriminator: dict[str, Any] | None = None,
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
        pool_size: int = 50,
    ) -> None:
        super().__init__()
        check_numbers("CycleGAN", cycle_weight=cycle_weight, identity_weight=identity_weight)
        check_counts("CycleGAN", 0, pool_size=pool_size)
        self.generator_ab = ResnetGenerator(**(generator or {}))
        self.generator_ba = ResnetGenerator(**(generator or {}))
        self.discriminator_a = PatchDiscriminator(**(discriminator or {}))
        self.discriminator_b = PatchDiscriminator(**(discriminator or {}))
        self.pool_a, self.pool_b = ImagePool(pool_size), ImagePool(pool_size)
        self.cycle_weight = cycle_weight
        self.identity_weight = identity_weight

    def forward(self, image: Tensor, direction: str = "ab", mode: str = "predict") -> Tensor:
        """Translates images (B, 3, H, W) in [-1, 1] from a to b (``direction="ab"``) or back (``"ba"``)."""
        generator = {"ab": self.generator_ab, "ba": self.generator_ba}[direction]
        return generator(image)

    def train_step(self, data: dict[str, dict[str, Tensor]], optim_wrapper: OptimWrapperDict) -> dict[str, Tensor]:
        """One step of the generators, then one of the discriminators.

        Args:
            data: ``dict(pair=dict(a=(B, 3, H, W), b=(B, 3, H, W)))`` in [-1, 1].
            optim_wrapper: The wrappers ``generator`` and ``discriminator`` of `CycleGANOptimizers`.

        Returns:
            Each loss for the log, and ``loss``, the sum of the generators'.
        """
        pair = self.data_preprocessor(data, True)["pair"]
        real = {"a": pair["a"], "b": pair["b"]}
        with optim_wrapper["generator"].optim_context(self):
            losses, fake = self.generator_losses(real)
        losses["loss"] = sum(losses.values())
        optim_wrapper["generator"].update_params(losses["loss"])
        shown = {"a": self.pool_a.query(fake["a"].detach()), "b": self.pool_b.query(fake["b"].detach())}
        with optim_wrapper["discriminator"].optim_context(self):
            judged = self.discriminator_losses(real, shown)
        optim_wrapper["discriminator"].update_params(sum(judged.values()))
        return OrderedDict((name, value.detach()) for name, value in {**losses, **judged}.items())

    def generator_losses(self, real: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The generators' losses by name, and the translated images ``dict(a=..., b=...)``.

        ``real`` is ``dict(a=..., b=...)`` of images (B, 3, H, W) in [-1, 1], as are the translated ones. The
        discriminators receive no gradient.
        """
        to = {"a": self.generator_ba, "b": self.generator_ab}
        fake = {"b": to["b"](real["a"]), "a": to["a"](real["b"])}
        losses = {}
        for side, other in (("a", "b"), ("b", "a")):
            scores = self._judge_frozen(side, fake[side])
            losses[f"adversarial_{side}"] = lsgan_loss(scores, True)
            losses[f"cycle_{side}"] = cycle_loss(real[side], to[side](fake[other]), self.cycle_weight)
            if self.identity_weight > 0:
                same = to[side](real[side])
                losses[f"identity_{side}"] = identity_loss(real[side], same, self.cycle_weight, self.identity_weight)
        return losses, fake

    def discriminator_losses(self, real: dict[str, Tensor], shown: dict[str, Tensor]) -> dict[str, Tensor]:
        """The discriminators' losses for real images (B, 3, H, W) and for translated ones drawn from the pools."""
        judges = {"a": self.discriminator_a, "b": self.discriminator_b}
        return {
            f"discriminator_{side}": discriminator_loss(judge(real[side]), judge(shown[side]))
            for side, judge in judges.items()
        }

    def _judge_frozen(self, side: str, image: Tensor) -> Tensor:
        """Scores that carry a gradient to the image but none to the discriminator's weights."""
        judge = bare({"a": self.discriminator_a, "b": self.discriminator_b}[side])
        judge.requires_grad_(False)
        scores = judge(image)
        judge.requires_grad_(True)
        return scores


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CycleGANOptimizers:
    """Builds one optimiser for both generators and one for both discriminators, of the same settings.

    Args:
        optim_wrapper_cfg: ``dict(optimizer=dict(type="Adam", ...))`` and options of the wrapper.
        paramwise_cfg: Not used; mmengine hands it to every constructor.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.wrapper.setdefault("type", "OptimWrapper")
        self.optimizer = self.wrapper.pop("optimizer")

    def __call__(self, model: nn.Module) -> OptimWrapperDict:
        """The wrappers ``generator`` and ``discriminator`` of a `CycleGAN`."""
        model = bare(model)
        parts = {
            "generator": [model.generator_ab, model.generator_ba],
            "discriminator": [model.discriminator_a, model.discriminator_b],
        }
        wrappers = {}
        for name, networks in parts.items():
            parameters = [parameter for network in networks for parameter in network.parameters()]
            optimizer = OPTIMIZERS.build(dict(self.optimizer, params=parameters))
            wrappers[name] = OPTIM_WRAPPERS.build(dict(self.wrapper, optimizer=optimizer))
        return OptimWrapperDict(**wrappers)


@MODEL_WRAPPERS.register_module()
class CycleGANDistributed(MMSeparateDistributedDataParallel):
    """A CycleGAN on several processes: each of its networks averages its own gradients.

    mmengine hands over a device number that its base class also applies to CPU processes, which refuse one.

    Args:
        module: The `CycleGAN`.
        device_ids: The process's GPU.
    """

    def __init__(self, module: nn.Module, device_ids: list[int] | None = None) -> None:
        super().__init__(module, **(dict(device_ids=device_ids) if torch.cuda.is_available() else {}))


def linear_decay(epochs: int, decay_epochs: int) -> list[dict[str, Any]]:
    """mmengine's schedule: ``epochs`` epochs at the full rate, then ``decay_epochs`` falling linearly towards 0.

    The k-th falling epoch runs at 1 - k / (decay_epochs + 1) of the rate, so that the last one still learns.
    """
    if decay_epochs == 0:
        return []
    # mmengine reaches end_factor in the epoch before `end`: here the one after the last.
    first, end = decay_epochs / (decay_epochs + 1), epochs + decay_epochs + 1
    return [dict(type="LinearLR", start_factor=first, end_factor=0.0, begin=epochs, end=end)]


def generator_weights(model: CycleGAN) -> dict[str, Tensor]:
    """The weights that translation needs, under their keys in the bare model."""
    weights = {}
    for name in ("generator_ab", "generator_ba"):
        network = bare(getattr(model, name))
        weights.update({f"{name}.{key}": value.cpu() for key, value in network.state_dict().items()})
    return weights


def load_generators(state_dict: dict[str, Tensor], generator: dict[str, Any] | None) -> dict[str, ResnetGenerator]:
    """The generators ``dict(ab=..., ba=...)`` in eval mode from `generator_weights`."""
    generators = {}
    for direction in ("ab", "ba"):
        prefix = f"generator_{direction}."
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            network = ResnetGenerator(**(generator or {}))
        network.load_state_dict({k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)})
        generators[direction] = network.eval()
    return generators
