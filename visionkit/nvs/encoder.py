"""The masked autoencoder: NViST's image encoder, and the stage that fine-tunes it on photographs of scenes.

Paper: He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022. Parameters carry the published names,
so MAE's own checkpoints load. The position tables are fixed sine-cosine codes and are built, never loaded.
"""

from functools import partial

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from visionkit.checks import check_counts
from visionkit.errors import VisionKitError

_layer_norm = partial(nn.LayerNorm, eps=1e-6)


def sincos_table_1d(width: int, positions: Tensor) -> Tensor:
    """Sine-cosine codes of scalar positions ("Attention Is All You Need", section 3.5).

    Args:
        width: even number of channels.
        positions: (N,).

    Returns:
        (N, width): sines in the first half, cosines in the second.
    """
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = positions.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_table_2d(width: int, rows: int, columns: int, cls_token: bool = True, offset: float = 0.0) -> Tensor:
    """Fixed position codes of a grid in row-major order: half the channels code the column, half the row.

    Args:
        width: channels, a multiple of four.
        rows: grid height.
        columns: grid width.
        cls_token: put a zero code in front.
        offset: added to rows and columns; 0.5 codes the cells' centres.

    Returns:
        (1, rows * columns (+ 1), width), float32.
    """
    if width % 4:
        raise VisionKitError(f"embed_dim={width}: expected a multiple of 4 for the 2D position codes")
    row, column = torch.meshgrid(torch.arange(rows) + offset, torch.arange(columns) + offset, indexing="ij")
    table = torch.cat(
        [sincos_table_1d(width // 2, column.flatten()), sincos_table_1d(width // 2, row.flatten())], dim=1
    )
    if cls_token:
        table = torch.cat([table.new_zeros(1, width), table])
    return table.float()[None]


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cuts images into patches: (B, 3, H, W) -> (B, patches, patch_size**2 * 3), colour fastest."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    images = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return images.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: Tensor, patch_size: int, rows: int, columns: int) -> Tensor:
    """Undoes [patchify]: (B, rows * columns, patch_size**2 * C) -> (B, C, rows * patch_size, columns * patch_size)."""
    batch = patches.shape[0]
    patches = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, columns * patch_size)


class ViTEncoder(nn.Module):
    """A plain vision transformer with a class token and fixed position codes.

    Args:
        img_size: (height, width) in pixels, multiples of ``patch_size``.
        patch_size: side of a patch in pixels.
        embed_dim: token width.
        depth: number of blocks.
        num_heads: attention heads.
    """

    def __init__(
        self, img_size: tuple[int, int], patch_size: int = 5, embed_dim: int = 768, depth: int = 12, num_heads: int = 12
    ) -> None:
        super().__init__()
        check_counts("encoder", 1, patch_size=patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        self.img_size, self.patch_size, self.embed_dim = tuple(img_size), patch_size, embed_dim
        if img_size[0] % patch_size or img_size[1] % patch_size:
            raise VisionKitError(f"img_size={tuple(img_size)}: expected multiples of encoder_patch_size={patch_size}")
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.patch_embed = PatchEmbed(tuple(img_size), patch_size, 3, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", sincos_table_2d(embed_dim, *self.grid), persistent=False)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, norm_layer=_layer_norm) for _ in range(depth)
        )
        self.norm = _layer_norm(embed_dim)
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_DEFAULT_STD).view(1, 3, 1, 1), persistent=False)
        nn.init.normal_(self.cls_token, std=0.02)
        self.apply(_init_weights)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] with ImageNet's mean and deviation taken out; the same shape."""
        return (images - self.pixel_mean) / self.pixel_std

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens with their position codes, no class token: (B, 3, H, W) in [0, 1] -> (B, patches, D)."""
        return self.patch_embed(self.normalise(images)) + self.pos_embed[:, 1:]

    def encode(self, tokens: Tensor) -> Tensor:
        """Puts the class token in front and runs the blocks: (B, L, D) -> (B, 1 + L, D), before the last LayerNorm."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([cls_token.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        """All tokens of unmasked images: (B, 3, H, W) in [0, 1] -> (B, 1 + patches, D).

        NViST reads the tokens before the last LayerNorm, which MAE alone applies.
        """
        return self.encode(self.tokens(images))


class MaskedAutoencoder(ViTEncoder):
    """MAE with its decoder: most patches are hidden, the loss is the squared error on the hidden ones.

    Args:
        img_size, patch_size, embed_dim, depth, num_heads: the encoder, see [ViTEncoder].
        decoder_embed_dim, decoder_depth, decoder_num_heads: the light decoder.
        mask_ratio: share of hidden patches.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int = 5,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.75,
    ) -> None:
        super().__init__(img_size, patch_size, embed_dim, depth, num_heads)
        sizes = dict(decoder_embed_dim=decoder_embed_dim, decoder_depth=decoder_depth)
        check_counts("encoder", 1, **sizes, decoder_num_heads=decoder_num_heads)
        if not 0 < mask_ratio < 1:
            raise VisionKitError(f"mask_ratio={mask_ratio}: expected a share between 0 and 1")
        self.mask_ratio = mask_ratio
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.register_buffer("decoder_pos_embed", sincos_table_2d(decoder_embed_dim, *self.grid), persistent=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, qkv_bias=True, norm_layer=_layer_norm)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = _layer_norm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            module.apply(_init_weights)

    def mask(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Chooses the patches that stay: those with the smallest noise.

        Args:
            noise: (B, patches).

        Returns:
            kept (B, K): indices of the patches that stay; restore (B, patches): where each patch lies in the shuffled
            sequence; mask (B, patches): 1 where hidden.
        """
        shuffle = noise.argsort(dim=1, stable=True)
        restore = shuffle.argsort(dim=1, stable=True)
        num_kept = int(noise.shape[1] * (1 - self.mask_ratio))
        return shuffle[:, :num_kept], restore, (restore >= num_kept).to(noise.dtype)

    def encode_masked(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes the patches that stay: latent (B, 1 + K, D), and ``restore`` and ``mask`` of [mask]."""
        tokens = self.tokens(images)
        kept, restore, mask = self.mask(noise)
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        return self.norm(self.encode(tokens)), restore, mask

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Predicts all patches, ImageNet-normalised: (B, 1 + K, D) -> (B, patches, patch_size**2 * 3)."""
        tokens = self.decoder_embed(latent)
        num_hidden = restore.shape[1] + 1 - tokens.shape[1]
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), num_hidden, -1)
        patches = torch.cat([tokens[:, 1:], hidden], dim=1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The whole pass.

        Args:
            images: (B, 3, H, W) in [0, 1].
            noise: (B, patches), drawn from torch's generator when None.

        Returns:
            loss: scalar, squared error of hidden patches; pred: (B, patches, patch_size**2 * 3); mask: (B, patches).
        """
        if noise is None:
            noise = torch.rand(len(images), self.grid[0] * self.grid[1], device=images.device)
        latent, restore, mask = self.encode_masked(images, noise)
        pred = self.decode(latent, restore)
        target = patchify(self.normalise(images), self.patch_size)
        error = (pred.float() - target).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum(), pred, mask


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
