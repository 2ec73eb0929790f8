"""NViST's decoder: from image tokens and two camera numbers to the grids of a radiance field.

Paper: Jang & Agapito, *NViST: In the Wild New View Synthesis from a Single Image with Transformers*, CVPR 2024.
Every output token starts from one shared token plus a position code; blocks that read the image (cross-attention) and
blocks that let the output tokens talk (self-attention) alternate.
"""

import math

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from visionkit.backbones.attention import AttentionCore
from visionkit.checks import check_choice, check_counts
from visionkit.errors import VisionKitError
from visionkit.nvs.encoder import sincos_table_2d, unpatchify

REPRESENTATIONS = ("vector_matrix", "triplanes", "CP")
CONDITIONINGS = ("adaln", "adaln_zero", "concat")


def fourier_features(values: Tensor, num_frequencies: int) -> Tensor:
    """Values, then the sines, then the cosines of 2^k pi value, k = 0, 1, ...: (..., D) -> (..., D * (1 + 2 * K))."""
    frequency = math.pi * 2.0 ** torch.arange(num_frequencies, device=values.device, dtype=values.dtype)
    angle = (values[..., None] * frequency).flatten(-2)
    return torch.cat([values, angle.sin(), angle.cos()], dim=-1)


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value inputs; ``core`` is what attends."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.core = AttentionCore("softmax", self.num_heads, self.head_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each (B, L, width) -> (B, L, width)."""
        heads = [
            linear(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for linear, x in ((self.q, query), (self.k, key), (self.v, value))
        ]
        return self.proj(self.core(*heads).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One decoder block; reads ``memory`` when ``cross``, else the tokens themselves.

    Args:
        width: token width.
        num_heads: attention heads.
        cross: cross-attention instead of self-attention.
        conditioning: ``adaln`` modulates both halves by the camera vector; ``adaln_zero`` does so from zero gates;
            ``concat`` leaves them alone (the camera is a token of the memory), and as released norms keys and values
            apart from the queries in self-attention too.
    """

    def __init__(self, width: int, num_heads: int, cross: bool, conditioning: str) -> None:
        super().__init__()
        modulated = conditioning != "concat"
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not modulated)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not modulated)
        self.attn = Attention(width, num_heads)
        self.mlp = Mlp(width, 4 * width)
        self.cross = cross
        self.norms_memory = cross or not modulated
        if self.norms_memory:
            self.norm_k = nn.LayerNorm(width, eps=1e-6)
            self.norm_v = nn.LayerNorm(width, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)) if modulated else None

    def forward(self, tokens: Tensor, memory: Tensor, camera: Tensor) -> Tensor:
        """(B, L, D) tokens, (B, M, D) memory, (B, D) camera vector -> (B, L, D)."""
        if self.adaLN_modulation is None:
            tokens = tokens + self._attend(self.norm1(tokens), memory if self.cross else tokens)
            return tokens + self.mlp(self.norm2(tokens))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(camera)[:, None].chunk(6, dim=-1)
        query = self.norm1(tokens) * (1 + scale1) + shift1
        tokens = tokens + gate1 * self._attend(query, memory if self.cross else query)
        return tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)

    def _attend(self, query: Tensor, memory: Tensor) -> Tensor:
        if self.norms_memory:
            return self.attn(query, self.norm_k(memory), self.norm_v(memory))
        return self.attn(query, memory, memory)


class Decoder(nn.Module):
    """Tokens of one image -> planes and vectors of its radiance field.

    Args:
        encoder_dim: width of the image tokens.
        num_patches: image tokens without the class token.
        embed_dim: decoder width, equal to ``encoder_dim``.
        depth: blocks; even ones cross-attend, odd ones self-attend.
        num_heads: attention heads.
        output_dim: channels of a plane or vector.
        resolution: side R of a plane in cells.
        patch_size: cells per token side.
        representation: ``vector_matrix`` (3 planes and 3 vectors), ``triplanes`` or ``CP`` (3 vectors).
        conditioning: see [Block].
        pe_freq: frequencies of the camera numbers' Fourier features.
        true_positions: a position table per plane and per vector. The released code lays one table over all tokens,
            so that rows drift; that is the default, for its checkpoints.
    """

    def __init__(
        self,
        encoder_dim: int,
        num_patches: int,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        output_dim: int = 32,
        resolution: int = 48,
        patch_size: int = 3,
        representation: str = "vector_matrix",
        conditioning: str = "adaln",
        pe_freq: int = 4,
        true_positions: bool = False,
    ) -> None:
        super().__init__()
        sizes = dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, output_dim=output_dim)
        check_counts("decoder", 1, **sizes, resolution=resolution, patch_size=patch_size)
        check_counts("decoder", 0, pe_freq=pe_freq)
        _check(representation, conditioning, encoder_dim, embed_dim, num_heads, resolution, patch_size)
        self.side = resolution // patch_size
        self.patch_size, self.pe_freq = patch_size, pe_freq
        self.has_planes = representation != "CP"
        self.has_vectors = representation != "triplanes"
        self.concat = conditioning == "concat"
        table = (_true_position_table if true_positions else _released_position_table)(
            embed_dim, self.side, self.has_planes, self.has_vectors
        )
        self.register_buffer("decoder_pos_embed", table, persistent=False)
        self.encoded_patches_pos_embed = nn.Parameter(torch.zeros(1, num_patches, embed_dim))
        self.output_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.camera_params_embed = nn.Sequential(
            nn.Linear(2 * (1 + 2 * pe_freq), embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim)
        )
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, i % 2 == 0, conditioning) for i in range(depth))
        if self.has_planes:
            self.decoder_out_norm = nn.Sequential(nn.LayerNorm(embed_dim, eps=1e-6), nn.GELU())
            self.decoder_pred = _heads(embed_dim, patch_size**2 * output_dim)
        if self.has_vectors:
            self.decoder_vector_norm = nn.Sequential(nn.LayerNorm(embed_dim, eps=1e-6), nn.GELU())
            self.decoder_vector_pred = _heads(embed_dim, patch_size * output_dim)
        self._init_weights(conditioning)

    def _init_weights(self, conditioning: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.output_token, std=0.02)
        nn.init.normal_(self.encoded_patches_pos_embed, std=0.01)
        if conditioning == "adaln_zero":
            for block in self.blocks:
                nn.init.zeros_(block.adaLN_modulation[1].weight)

    def forward(self, latent: Tensor, camera_params: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Predicts the grids.

        Args:
            latent: (B, 1 + patches, D) image tokens, class token first.
            camera_params: (B, 2): distance of the input camera from the origin, focal length / image height.

        Returns:
            planes (3, B, C, R, R) or None, vectors (3, B, C, R, 1) or None.
        """
        camera = self.camera_params_embed(fourier_features(camera_params, self.pe_freq))
        memory = latent[:, 1:] + self.encoded_patches_pos_embed
        if self.concat:
            memory = torch.cat([memory, camera[:, None].to(memory.dtype)], dim=1)
        table = self.decoder_pos_embed
        tokens = self.output_token + table[:, 1:]
        tokens = torch.cat([latent[:, :1] + table[:, :1], tokens.expand(len(latent), -1, -1).to(latent.dtype)], dim=1)
        for block in self.blocks:
            tokens = block(tokens, memory, camera)
        return self._grids(tokens[:, 1:])

    def _grids(self, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        planes = vectors = None
        if self.has_planes:
            groups = tokens[:, : 3 * self.side**2].chunk(3, dim=1)
            maps = [head(self.decoder_out_norm(x)) for head, x in zip(self.decoder_pred, groups)]
            planes = torch.stack([unpatchify(x, self.patch_size, self.side, self.side) for x in maps])
        if self.has_vectors:
            groups = tokens[:, -3 * self.side :].chunk(3, dim=1)
            lines = [head(self.decoder_vector_norm(x)) for head, x in zip(self.decoder_vector_pred, groups)]
            vectors = torch.stack([self._line(x) for x in lines])
        return planes, vectors

    def _line(self, patches: Tensor) -> Tensor:
        """(B, side, patch_size * C) -> (B, C, R, 1)."""
        batch, side, _ = patches.shape
        line = patches.reshape(batch, side * self.patch_size, -1)
        return line.transpose(1, 2).unsqueeze(-1)


def _heads(width: int, out: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, out) for _ in range(3))


def _check(
    representation: str,
    conditioning: str,
    encoder_dim: int,
    embed_dim: int,
    num_heads: int,
    resolution: int,
    patch_size: int,
) -> None:
    check_choice("", REPRESENTATIONS, representation=representation)
    check_choice("", CONDITIONINGS, camera_conditioning=conditioning)
    if encoder_dim != embed_dim:
        raise VisionKitError(f"decoder_embed_dim={embed_dim}: expected the encoder's width, {encoder_dim}")
    if embed_dim % num_heads:
        raise VisionKitError(f"decoder_num_heads={num_heads}: expected a divisor of decoder_embed_dim={embed_dim}")
    if resolution % patch_size:
        raise VisionKitError(f"resolution={resolution}: expected a multiple of decoder_patch_size={patch_size}")


def _released_position_table(width: int, side: int, planes: bool, vectors: bool) -> Tensor:
    """One grid over all tokens: 3 * side rows, with side columns for the planes and one for the vectors."""
    return sincos_table_2d(width, 3 * side, side * planes + vectors, offset=0.5)


def _true_position_table(width: int, side: int, planes: bool, vectors: bool) -> Tensor:
    """The same grid read rightly: token (row, column) of plane p sits at (p * side + row, column).

    The vectors' tokens have a column of their own, the class token a zero code.
    """
    grid = sincos_table_2d(width, 3 * side, side * planes + vectors, cls_token=False, offset=0.5)[0]
    grid = grid.reshape(3 * side, -1, width)
    split = side if planes else 0
    return torch.cat([grid.new_zeros(1, width), grid[:, :split].flatten(0, 1), grid[:, split:].flatten(0, 1)])[None]
