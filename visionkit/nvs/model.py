"""NViST: one photo in, a radiance field out, trained on casual captures of many scenes."""

from typing import NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from visionkit.backbones.attention import set_attention
from visionkit.checks import check_above, check_counts, check_numbers
from visionkit.engine.checkpoints import read_weights
from visionkit.errors import VisionKitError
from visionkit.nvs.attention import set_self_attention
from visionkit.nvs.cameras import pixel_rays
from visionkit.nvs.decoder import Decoder
from visionkit.nvs.encoder import MaskedAutoencoder, ViTEncoder
from visionkit.nvs.field import FieldRenderer
from visionkit.nvs.frustum import Frustum, FrustumHead, depth_error, one_pixel_in_four
from visionkit.nvs.losses import PerceptualLoss
from visionkit.nvs.published import load_mae
from visionkit.ops.march import edges_along
from visionkit.ops.render import Field, Rendering, check_jitter, render_rays_in_chunks
from visionkit.registry import MODELS


class Grids(NamedTuple):
    """The 3D representation of B scenes.

    planes (3, B, C, R, R), vectors (3, B, C, R, 1) and the input view's frustum; None where unused.
    """

    planes: Tensor | None
    vectors: Tensor | None
    frustum: Frustum | None = None


@MODELS.register_module()
class NViST(BaseModel):
    """The whole model (Jang & Agapito, CVPR 2024), with the option names of the released configuration.

    A batch of scenes is a dictionary: ``image`` (B, V, 3, H, W) in [0, 1], the input view first; ``c2w`` (B, V, 3, 4)
    relative to the input view; ``focal`` (B, V, 2) in pixels; ``camera_params`` (B, 2); ``near_far`` (B, 2). Where
    known, ``depth`` (B, V, H, W), along the optical axis, makes a loss of its own.

    Args:
        img_size: (height, width) of all images.
        encoder_patch_size, encoder_embed_dim, encoder_depth, encoder_num_heads: see [ViTEncoder].
        decoder_embed_dim, decoder_depth, decoder_num_heads, decoder_output_dim: see [Decoder].
        resolution, decoder_patch_size, representation, camera_conditioning, camera_params_pe_freq: see [Decoder].
        true_positions: see [Decoder].
        sigma_dim, rgb_dim, rgb_feature_dim, viewdir_pe, background: see [FieldRenderer].
        num_samples: intervals along a ray.
        box: half the side of the cube that the grids fill.
        jitter: see [ray_edges]; training only.
        whole_view: render one complete target view in every step, which LPIPS needs; without it the loss is of
            ``extra_rays`` alone, which a CPU can afford.
        extra_rays: random rays per scene beside that view.
        lpips_weight, distortion_weight: the paper's loss weights.
        depth_weight: weight of the loss of known depths.
        lpips_scaling: see [PerceptualLoss].
        bf16: run encoder and decoder in bfloat16 when training, on a GPU the colour network too.
        chunk: rays of a scene rendered at a time.
        mae_checkpoint: MAE weights to start the encoder and part of the decoder from.
        frustum_depths: steps of depth of the input view's own frustum, see [FrustumHead]; the paper's has none, 0.
        attention: attention of the decoder's self-attending blocks, see [set_self_attention].
        encoder_attention: attention of the encoder's blocks, see [visionkit.backbones.set_attention].
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (160, 90),
        encoder_patch_size: int = 5,
        encoder_embed_dim: int = 768,
        encoder_depth: int = 12,
        encoder_num_heads: int = 12,
        decoder_embed_dim: int = 768,
        decoder_depth: int = 12,
        decoder_num_heads: int = 12,
        decoder_output_dim: int = 32,
        resolution: int = 48,
        decoder_patch_size: int = 3,
        representation: str = "vector_matrix",
        camera_conditioning: str = "adaln",
        camera_params_pe_freq: int = 4,
        true_positions: bool = False,
        sigma_dim: int = 8,
        rgb_dim: int = 24,
        rgb_feature_dim: int = 64,
        viewdir_pe: int = 4,
        background: str = "black",
        num_samples: int = 48,
        box: float = 0.8,
        jitter: str | None = "ray",
        whole_view: bool = True,
        extra_rays: int = 600,
        lpips_weight: float = 0.1,
        distortion_weight: float = 0.001,
        depth_weight: float = 0.03,
        lpips_scaling: str = "right",
        bf16: bool = False,
        chunk: int = 1024,
        mae_checkpoint: str | None = None,
        attention: str = "softmax",
        encoder_attention: str = "softmax",
        frustum_depths: int = 0,
    ) -> None:
        super().__init__()
        if sigma_dim + rgb_dim != decoder_output_dim:
            raise VisionKitError(
                f"decoder_output_dim={decoder_output_dim}: expected sigma_dim + rgb_dim = {sigma_dim + rgb_dim}"
            )
        check_jitter(jitter)
        check_counts("model", 1, num_samples=num_samples, chunk=chunk)
        check_counts("model", 0 if whole_view else 1, extra_rays=extra_rays)
        check_counts("model", 0, frustum_depths=frustum_depths)
        check_above("model", 0, box=box)
        weights = dict(lpips_weight=lpips_weight, distortion_weight=distortion_weight, depth_weight=depth_weight)
        check_numbers("model", **weights)
        self.img_size = tuple(img_size)
        self.encoder = ViTEncoder(img_size, encoder_patch_size, encoder_embed_dim, encoder_depth, encoder_num_heads)
        if encoder_attention != "softmax":
            set_attention(self.encoder, encoder_attention)
        # the decoder reads the tokens before it: without a gradient several processes would wait for one
        self.encoder.norm.requires_grad_(False)
        self.decoder = Decoder(
            encoder_embed_dim,
            self.encoder.grid[0] * self.encoder.grid[1],
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            decoder_output_dim,
            resolution,
            decoder_patch_size,
            representation,
            camera_conditioning,
            camera_params_pe_freq,
            true_positions,
        )
        if attention != "softmax":
            set_self_attention(self.decoder, attention)
        self.renderer = FieldRenderer(representation, sigma_dim, rgb_dim, rgb_feature_dim, viewdir_pe, background)
        self.frustum_head = None
        if frustum_depths:
            self.frustum_head = FrustumHead(encoder_embed_dim, self.encoder.grid, frustum_depths)
        self.box = box
        self.register_buffer("aabb", torch.tensor([[-box] * 3, [box] * 3]), persistent=False)
        self.num_samples, self.jitter, self.extra_rays, self.chunk = num_samples, jitter, extra_rays, chunk
        self.lpips_weight, self.distortion_weight, self.bf16 = lpips_weight, distortion_weight, bf16
        self.whole_view, self.depth_weight = whole_view, depth_weight
        if lpips_weight and not whole_view:
            raise VisionKitError("lpips_weight needs whole_view=True: LPIPS compares complete images; set it to 0")
        self.lpips = PerceptualLoss(scaling=lpips_scaling) if lpips_weight else None
        if mae_checkpoint:
            self.load_source(read_weights(mae_checkpoint))

    def load_source(self, state_dict: dict[str, Tensor]) -> None:
        """Starts from MAE weights: the encoder, and of the decoder's blocks what MAE's have by the same name."""
        load_mae(self.encoder, state_dict)
        for target, source in zip(self.decoder.blocks, self.encoder.blocks):
            if target.mlp.fc1.weight.shape == source.mlp.fc1.weight.shape:
                own, theirs = target.state_dict(), source.state_dict()
                target.load_state_dict({key: theirs[key] for key in own if key in theirs}, strict=False)

    def represent(self, image: Tensor, camera_params: Tensor) -> Grids:
        """Predicts the radiance fields of B photos, once per scene.

        Args:
            image: (B, 3, H, W) in [0, 1], of ``img_size``.
            camera_params: (B, 2): distance of the camera from the scene's centre, focal length / image height; for
                the centre see [visionkit.nvs.data.SceneViews].
        """
        if tuple(image.shape[-2:]) != self.img_size:
            raise VisionKitError(
                f"image is {tuple(image.shape[-2:])}, expected {self.img_size} (height, width); resize it"
            )
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            tokens = self.encoder(image)
            planes, vectors = (None if grid is None else grid.float() for grid in self.decoder(tokens, camera_params))
            frustum = None
            if self.frustum_head is not None:
                frustum = self.frustum_head(image, tokens[:, 1:], camera_params, self.box)
        return Grids(planes, vectors, frustum)

    def field(self, grids: Grids) -> Field:
        """The radiance field of what [represent] predicts, of points (B, P, 3) in [-1, 1]^3."""
        field = self.renderer.field(grids.planes, grids.vectors, dense=True)
        return self.frustum_head.complete(field, grids.frustum) if grids.frustum is not None else field

    def render(
        self,
        grids: Grids,
        origins: Tensor,
        directions: Tensor,
        near_far: Tensor,
        min_weight: float = 0.0,
        jitter: str | None = None,
    ) -> Rendering:
        """Renders rays of B scenes.

        Args:
            grids: the scenes' grids, from [represent].
            origins, directions: (B, R, 3), unit directions, in the input view's frame.
            near_far: (B, 2).
            min_weight: colours of samples below this weight are skipped; 0 skips only what is invisible.
            jitter: see [ray_edges].
        """
        near, far = near_far[:, :1], near_far[:, 1:]
        options = dict(chunk=self.chunk, min_weight=min_weight)
        seed = torch.randint(2**31, (), device=origins.device) if jitter is not None else None
        if grids.frustum is not None:
            edges = edges_along(origins, near, far, self.num_samples, seed, jitter)
            options.update(background=self.renderer.background)
            return render_rays_in_chunks(self.field(grids), origins, directions, edges, self.aabb, **options)
        rays = origins, directions, near, far, self.aabb
        # on a GPU a kernel does it, whose sums stay in float32
        half = self.bf16 and self.training and origins.is_cuda
        with torch.autocast(origins.device.type, torch.bfloat16, enabled=half):
            options.update(num_samples=self.num_samples, seed=seed, jitter=jitter or "ray")
            return self.renderer.render(grids.planes, grids.vectors, *rays, **options)

    def render_views(self, grids: Grids, c2w: Tensor, focal: Tensor, near_far: Tensor) -> Rendering:
        """Renders V complete views of B scenes with ``img_size``; fields are (B, V, H, W, ...).

        Args:
            c2w: (B, V, 3, 4).
            focal: (B, V, 2) in pixels.
            near_far: (B, 2).
        """
        batch, views = c2w.shape[:2]
        origins, directions = pixel_rays(c2w, focal, self.img_size)
        seen = self.render(grids, origins.flatten(1, 3), directions.flatten(1, 3), near_far, min_weight=1e-4)
        shape = (batch, views, *self.img_size)
        return Rendering(*(None if each is None else each.unflatten(1, shape[1:]) for each in seen))

    def forward(
        self, scenes: dict[str, Tensor] | None = None, mode: str = "loss", **batch: Tensor
    ) -> dict[str, Tensor] | Tensor:
        """``mode="loss"`` on a training batch; ``mode="predict"``: all target views (B, V, 3, H, W) in [0, 1]."""
        batch = scenes if scenes is not None else batch
        if mode == "loss":
            return self._losses(batch)
        grids = self.represent(batch["image"][:, 0], batch["camera_params"])
        seen = self.render_views(grids, batch["c2w"], batch["focal"], batch["near_far"])
        return seen.rgb.movedim(-1, 2).clamp(0, 1)

    def _losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image = batch["image"]
        grids = self.represent(image[:, 0], batch["camera_params"])
        origins, directions = pixel_rays(batch["c2w"], batch["focal"], self.img_size)
        pick = self._choose_rays(image)
        if "depth" in batch:  # along the optical axis -> along the ray
            distance = batch["depth"] / (directions * batch["c2w"][:, :, None, None, :, 2]).sum(dim=-1)
        origins, directions = origins.flatten(1, 3)[:, pick], directions.flatten(1, 3)[:, pick]
        target = image.movedim(2, -1).flatten(1, 3)[:, pick]
        seen = self.render(grids, origins, directions, batch["near_far"], jitter=self.jitter)
        losses = dict(
            loss_rgb=F.mse_loss(seen.rgb, target), loss_distortion=self.distortion_weight * seen.distortion.mean()
        )
        if "depth" in batch:
            distance = distance.flatten(1, 3)[:, pick]
            losses["loss_depth"] = self.depth_weight * self._depth_error(grids, seen, distance, batch)
        if self.lpips is not None and self.lpips.available:
            height, width = self.img_size
            whole = [x[:, : height * width].unflatten(1, (height, width)).movedim(-1, 1) for x in (seen.rgb, target)]
            losses["loss_lpips"] = self.lpips_weight * self.lpips(*whole).mean()
        losses["psnr"] = -10 * losses["loss_rgb"].detach().log10()
        return losses

    def _depth_error(self, grids: Grids, seen: Rendering, distance: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean error of the rays' ends, in units of the far end, and that of the input view's frustum."""
        far = batch["near_far"][:, 1:]
        end = seen.depth + (1 - seen.opacity) * far
        error = ((end - distance.minimum(far)).abs() / far).mean()
        if grids.frustum is None:
            return error
        some = one_pixel_in_four()  # says enough
        return error + depth_error(grids.frustum.volume[:, 0][some], batch["depth"][:, 0][some], grids.frustum.reach)

    def _choose_rays(self, image: Tensor) -> Tensor:
        """Random pixels of all views, the input's included; with ``whole_view`` one complete target comes first."""
        views, pixels = image.shape[1], self.img_size[0] * self.img_size[1]
        if not self.whole_view:
            return torch.randint(0, views * pixels, (self.extra_rays,)).to(image.device)
        complete = int(torch.randint(1, views, ()))
        others = torch.randint(0, (views - 1) * pixels, (self.extra_rays,))
        others = others + pixels * (others >= complete * pixels)
        whole = torch.arange(complete * pixels, (complete + 1) * pixels)
        return torch.cat([whole, others]).to(image.device)


@MODELS.register_module()
class MAEFineTuning(BaseModel):
    """MAE's own training task on views of scenes, before NViST takes the encoder.

    Args:
        img_size: (height, width).
        bf16: train in bfloat16.
        mae_checkpoint: MAE weights to start from.
        options: further options of [MaskedAutoencoder].
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (160, 90),
        bf16: bool = False,
        mae_checkpoint: str | None = None,
        **options: int,
    ) -> None:
        super().__init__()
        self.encoder = MaskedAutoencoder(img_size, **options)
        self.bf16 = bf16
        if mae_checkpoint:
            load_mae(self.encoder, read_weights(mae_checkpoint))

    def forward(
        self, scenes: dict[str, Tensor] | None = None, mode: str = "loss", **batch: Tensor
    ) -> dict[str, Tensor] | Tensor:
        """``loss``: error on hidden patches of all views; ``predict``: (B,) that error per scene."""
        image = (scenes or batch)["image"]
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            if mode == "loss":
                return dict(loss=self.encoder.reconstruct(image.flatten(0, 1))[0])
            return torch.stack([self.encoder.reconstruct(views)[0] for views in image])
