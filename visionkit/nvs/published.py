"""Published checkpoints of NViST's family, under their own keys."""

import logging

from mmengine.logging import print_log
from torch import Tensor, nn

from visionkit.errors import VisionKitError
from visionkit.nvs.encoder import MaskedAutoencoder, ViTEncoder

_TABLES = ("pos_embed", "decoder_pos_embed")
_MAE_DECODER = ("mask_token", "decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred")


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Drops what a published NViST or MAE checkpoint holds beyond what ``model`` computes with.

    These are the fixed position tables, MAE's decoder where the model has none, and the key and value norms of
    self-attention blocks, which the released decoder has and, unless the camera is a token, never applies.

    Args:
        state_dict: published key -> tensor, with or without a ``module.`` prefix.
        model: NViST, MaskedAutoencoder, ViTEncoder or Decoder, whose keys decide.
    """
    own = set(model.state_dict())
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return {key: value for key, value in state_dict.items() if key in own or not _is_ballast(key, own)}


def _is_ballast(key: str, own: set[str]) -> bool:
    parts = key.split(".")
    if parts[-1] in _TABLES:
        return True
    if parts[0] == "encoder":
        parts = parts[1:]
    if parts[0] in _MAE_DECODER:
        return True
    block, _, norm = key.rpartition(".")[0].rpartition(".")
    return norm in ("norm_k", "norm_v") and f"{block}.adaLN_modulation.1.weight" in own


def load_weights(model: nn.Module, state_dict: dict[str, Tensor], source: str) -> None:
    """Loads a checkpoint of the very same architecture.

    Raises:
        VisionKitError: names the first key that is missing, not known or of another size.
    """
    state_dict = checkpoint_filter_fn(state_dict, model)
    own = model.state_dict()
    for key, value in own.items():
        if key not in state_dict:
            raise VisionKitError(f"{source}: has no {key!r}; expected a checkpoint of this model's configuration")
        if state_dict[key].shape != value.shape:
            raise VisionKitError(
                f"{source}: {key!r} is {tuple(state_dict[key].shape)}, expected {tuple(value.shape)}; "
                "the checkpoint belongs to a model of another size; give its options"
            )
    for key in state_dict:
        if key not in own:
            raise VisionKitError(f"{source}: holds {key!r}, which this model does not have; check the configuration")
    model.load_state_dict(state_dict)


def load_mae(encoder: ViTEncoder, state_dict: dict[str, Tensor]) -> list[str]:
    """Starts an encoder (or a whole MAE) from MAE weights of another patch size: copies what fits.

    Returns:
        The keys of ``encoder`` that stay as they were initialised (with 5x5 patches: the patch projection).
    """
    state_dict = {key.removeprefix("module.").removeprefix("encoder."): value for key, value in state_dict.items()}
    own = encoder.state_dict()
    fitting = {key: state_dict[key] for key in own if key in state_dict and state_dict[key].shape == own[key].shape}
    if not fitting:
        raise VisionKitError("MAE checkpoint: no tensor fits this encoder; expected the same embed_dim and depth")
    encoder.load_state_dict(fitting, strict=False)
    left = [key for key in own if key not in fitting]
    what = "masked autoencoder" if isinstance(encoder, MaskedAutoencoder) else "encoder"
    print_log(
        f"{what}: {len(fitting)} tensors from MAE, not loaded: {', '.join(left) or 'none'}", "current", logging.INFO
    )
    return left
