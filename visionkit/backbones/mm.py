"""The backbones as mmengine, mmdetection and mmsegmentation want them: a config builds them, a tuple of maps comes out.

A config of mmdetection or mmsegmentation says ``custom_imports = dict(imports=["visionkit.backbones"])`` and
``backbone=dict(type="visionkit.MAViT", arch="tiny", out_indices=(0, 1, 2, 3))``.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import timm
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit, update_init_info
from torch import Tensor, nn

from visionkit.backbones import mavit, nalaformer, soft
from visionkit.backbones.layers import channels_first, channels_last
from visionkit.backbones.published import below, unwrap
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS

PRETRAINED = ("Pretrained", PretrainedInit)


class FileInit(PretrainedInit):
    """mmengine's initialisation from a file, by [MMBackbone.load_file]."""

    def __call__(self, module: "MMBackbone") -> None:
        print_log(f"load model from: {self.checkpoint}", logger="current")
        module.load_file(self.checkpoint, self.prefix or "")
        update_init_info(module, init_info=self._get_init_info())


class MMBackbone(BaseModule):
    """One of our families without its head.

    Args:
        arch: ``"tiny"``, ``"small"``, ...
        out_indices: numbers of the stages whose maps are returned, from 0, in this order.
        frozen_stages: the stem and so many stages take no gradient and keep their norms' statistics; -1 for none of
            them, 0 for the stem alone.
        norm_eval: keep the statistics of all batch norms while training.
        out_norms: a layer norm on every map, as MALA's detectors have.
        with_cp: recompute blocks in the backward pass.
        pretrained: a published checkpoint, under its own names.
        init_cfg: initialisation as mmengine knows it; for ``dict(type="Pretrained", checkpoint=...)`` see [load_file].
        **options: options of the family, see its class.

    Raises:
        VisionKitError: an unknown ``arch`` or stage, no stage, no file, or timm's ``checkpoint_path`` as an option.
    """

    family, filter_fn = "", None

    def __init__(
        self,
        arch: str = "tiny",
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        out_norms: bool = False,
        with_cp: bool = False,
        pretrained: str | None = None,
        init_cfg: dict | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(init_cfg)
        name = f"{self.family}_{arch}"
        if not timm.is_model(name):
            known = [each.removeprefix(f"{self.family}_") for each in timm.list_models(f"{self.family}_*")]
            raise VisionKitError(f"arch={arch!r}: expected one of {', '.join(known)}")
        if isinstance(out_indices, int) or not out_indices:
            raise VisionKitError(f"out_indices={out_indices!r}: expected a tuple of at least one of 0, 1, 2 and 3")
        if "checkpoint_path" in options:  # old versions of timm run what such a file holds
            raise VisionKitError("checkpoint_path: is not read; name the file by pretrained=")
        if wrong := [i for i in out_indices if i not in range(4)]:
            raise VisionKitError(f"out_indices: {wrong[0]} is not a stage; expected 0, 1, 2 or 3")
        if frozen_stages not in range(-1, 5):
            raise VisionKitError(f"frozen_stages={frozen_stages}: expected -1 (none) to 4 (all)")
        if pretrained and not isinstance(pretrained, (str, PathLike)):
            raise VisionKitError(f"pretrained={pretrained!r}: expected a file; no weights are hosted")
        if pretrained:
            options["pretrained_cfg_overlay"] = dict(file=pretrained)
        self.body = timm.create_model(name, pretrained=bool(pretrained), **options)
        self.channels = [self.body.feature_info[i]["num_chs"] for i in out_indices]
        self.body.prune_intermediate_layers(list(out_indices), prune_norm=True)
        self.body.set_grad_checkpointing(with_cp)
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval
        self.norms = nn.ModuleList(
            [nn.LayerNorm(dim, eps=1e-6) if out_norms else nn.Identity() for dim in self.channels]
        )
        if pretrained and out_norms:
            from visionkit.engine.checkpoints import load_checkpoint

            self._load_norms(unwrap(load_checkpoint(pretrained), pretrained), pretrained)
        self.train()

    def init_weights(self) -> None:
        """As mmengine's, but that the file of a ``Pretrained`` goes through [load_file].

        Raises:
            VisionKitError: an ``init_cfg`` without a type or a file; see [load_file].
        """
        given = self.init_cfg
        cfgs = [given] if isinstance(given, dict) else list(given or [])
        for cfg in cfgs:
            _check_init_cfg(cfg)
        files = [cfg for cfg in cfgs if cfg["type"] in PRETRAINED]
        self.init_cfg = [cfg for cfg in cfgs if cfg not in files] + [dict(cfg, type=FileInit) for cfg in files]
        super().init_weights()
        self.init_cfg = given

    def load_file(self, path: str, prefix: str = "") -> None:
        """Take the weights of a file: published or ours, of a classifier, a detector or this module.

        Args:
            path: a ``.pth`` or ``.safetensors`` file; no code from it is run.
            prefix: only what lies under this name; ``backbone.`` is found without.

        Raises:
            VisionKitError: no readable file, or not of this architecture.
        """
        from visionkit.engine.checkpoints import load_checkpoint, load_exactly

        state = unwrap(load_checkpoint(path), path, f"{prefix.removesuffix('.')}." if prefix else "")
        try:
            weights = self.filter_fn(state, self.body)
        except VisionKitError as error:
            raise VisionKitError(f"{path}: {error}") from error
        load_exactly(self.body, weights, path)
        self._load_norms(state, path)

    def _load_norms(self, state: Mapping[str, Tensor], path: str) -> None:
        """The maps' norms, which a classifier's file has not: ours by their place, released ones by their stage."""
        from visionkit.engine.checkpoints import load_exactly

        norms = below(state, "norms.")
        for place, stage in enumerate(self.out_indices):
            norms |= {f"{place}.{key}": value for key, value in below(state, f"extra_norms.{stage}.norm.").items()}
        if norms and self.norms.state_dict():
            load_exactly(self.norms, norms, path)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) -> maps (B, C_i, H_i, W_i)."""
        image_size, found = x.shape[-2:], {}
        for i, out in enumerate(self.body.forward_stages(x, max(self.out_indices) + 1)):
            if i in self.out_indices:
                found[i] = self.body.to_map(out, i, image_size, False)
        maps = [found[i] for i in self.out_indices]
        return tuple(channels_first(norm(channels_last(each))) for norm, each in zip(self.norms, maps))

    def train(self, mode: bool = True) -> "MMBackbone":
        """As every module's, but for what is frozen."""
        super().train(mode)
        if not mode:
            return self
        frozen = [self.body.stem, *list(self.body.stages)[: self.frozen_stages]] if self.frozen_stages >= 0 else []
        for part in frozen:
            part.eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def _check_init_cfg(cfg: object) -> None:
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise VisionKitError(f"init_cfg: {cfg!r}; expected a dictionary with a type, as dict(type='Pretrained', ...)")
    if cfg["type"] in PRETRAINED and not cfg.get("checkpoint"):
        raise VisionKitError("init_cfg: type='Pretrained' without a file; name one as checkpoint=")


@MODELS.register_module(name="MAViT")
class MMMAViT(MMBackbone):
    family, filter_fn = "mavit", staticmethod(mavit.checkpoint_filter_fn)


@MODELS.register_module(name="NaLaFormer")
class MMNaLaFormer(MMBackbone):
    family, filter_fn = "nalaformer", staticmethod(nalaformer.checkpoint_filter_fn)


@MODELS.register_module(name="SOFT")
class MMSOFT(MMBackbone):
    family, filter_fn = "soft", staticmethod(soft.checkpoint_filter_fn)


@MODELS.register_module(name="SOFTNorm")
class MMSOFTNorm(MMBackbone):
    family, filter_fn = "soft_norm", staticmethod(soft.checkpoint_filter_fn)
