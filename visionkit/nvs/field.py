"""The renderer's small networks: from looked-up features to density and colour."""

import torch
from torch import Tensor, nn

from visionkit.checks import check_choice, check_counts
from visionkit.ops.march import ColourNetwork, render_cp, render_triplanes, render_vector_matrix
from visionkit.ops.render import (
    Field,
    Rendering,
    cp_field,
    triplane_field,
    vector_matrix_field,
)

BACKGROUNDS = ("black", "white", "learned")


class FieldRenderer(nn.Module):
    """Turns grids into a [Field], and holds the colour of what lies behind them.

    Args:
        representation: ``vector_matrix``, ``triplanes`` or ``CP``.
        sigma_dim: channels of density.
        rgb_dim: channels of colour.
        rgb_feature_dim: width of the colour network.
        viewdir_pe: frequencies of the direction's features.
        background: ``black``, ``white`` or ``learned`` (one colour).
    """

    def __init__(
        self,
        representation: str = "vector_matrix",
        sigma_dim: int = 8,
        rgb_dim: int = 24,
        rgb_feature_dim: int = 64,
        viewdir_pe: int = 4,
        background: str = "black",
    ) -> None:
        super().__init__()
        check_counts("renderer", 1, sigma_dim=sigma_dim, rgb_dim=rgb_dim, rgb_feature_dim=rgb_feature_dim)
        check_counts("renderer", 0, viewdir_pe=viewdir_pe)
        check_choice("", BACKGROUNDS, background=background)
        self.representation, self.sigma_dim, self.viewdir_pe = representation, sigma_dim, viewdir_pe
        features = rgb_dim if representation == "CP" else 3 * rgb_dim
        self.rgb_matrix = nn.Sequential(nn.GELU(), nn.Linear(features, rgb_feature_dim), nn.GELU())
        self.rgb_mlp = nn.Sequential(
            nn.Linear(rgb_feature_dim + 6 * viewdir_pe + 3, rgb_feature_dim), nn.GELU(), nn.Linear(rgb_feature_dim, 3)
        )
        if representation == "triplanes":
            self.sigma_mlp = nn.Linear(3 * sigma_dim, 1)
        self.background_name = background
        if background == "learned":
            self.background_logit = nn.Parameter(torch.zeros(3))

    @property
    def background(self) -> Tensor | None:
        """(3,) colour in [0, 1], or None for black."""
        if self.background_name == "learned":
            return self.background_logit.sigmoid()
        if self.background_name == "white":
            return torch.ones(3, device=self.rgb_mlp[0].weight.device)
        return None

    @property
    def network(self) -> ColourNetwork:
        """The colour network's tensors."""
        first, (inner, _, last) = self.rgb_matrix[1], self.rgb_mlp
        return ColourNetwork(first.weight, first.bias, inner.weight, inner.bias, last.weight, last.bias)

    def field(self, planes: Tensor | None, vectors: Tensor | None, dense: bool = False) -> Field:
        """The radiance field of the decoder's grids.

        Args:
            planes: (3, B, C, R, R), or None for CP.
            vectors: (3, B, C, R, 1), or None for tri-planes.
            dense: look density up in one dense grid, see [vector_matrix_field].
        """
        if self.representation == "vector_matrix":
            return vector_matrix_field(planes, vectors, self.sigma_dim, self.network.rgb, dense)
        if self.representation == "triplanes":
            return triplane_field(planes, self.sigma_dim, self.sigma_mlp, self.network.rgb)
        return cp_field(vectors, self.sigma_dim, self.network.rgb)

    def render(
        self,
        planes: Tensor | None,
        vectors: Tensor | None,
        *rays: Tensor,
        **options: object,
    ) -> Rendering:
        """Renders rays through the decoder's grids.

        Args:
            planes, vectors: (3, B, C, R, R) and (3, B, C, R, 1); None for those that the representation does not have.
            rays: origins, directions, near, far and box, see [render_vector_matrix].
            options: ``num_samples``, ``seed``, ``jitter``, ``min_weight``, ``chunk`` and ``ray_gradients``, see there.
        """
        options.update(background=self.background, sigma_dim=self.sigma_dim)
        if self.representation == "vector_matrix":
            return render_vector_matrix(planes, vectors, self.network, *rays, **options)
        if self.representation == "triplanes":
            density = self.sigma_mlp.weight, self.sigma_mlp.bias
            return render_triplanes(planes, density, self.network, *rays, **options)
        return render_cp(vectors, self.network, *rays, **options)
