"""Kind ``mae``: a masked autoencoder's forward pass with given noise."""

import numpy as np
import torch
from reference.common import Checks, fill_state_dict, rng, tensor

from visionkit.nvs.encoder import MaskedAutoencoder
from visionkit.nvs.published import load_weights


def run(case: dict) -> Checks:
    """Latent, loss, prediction and mask."""
    name = case.get("name") or case["image"].split('"')[1].removesuffix(".image")
    model = MaskedAutoencoder(**case["config"], mask_ratio=case["mask_ratio"]).eval()
    shapes = {key: shape for key, shape in case["state_dict"].items() if "pos_embed" not in key}
    load_weights(model, fill_state_dict(shapes), "reference case")
    batch, patches = case["mask"]["shape"]
    noise = torch.from_numpy(rng(name + ".noise").rand(batch, patches).astype(np.float32))
    image = tensor(name + ".image", [batch, 3, *case["config"]["img_size"]]).sigmoid()
    with torch.no_grad():
        latent, _, _ = model.encode_masked(image, noise)
        loss, prediction, mask = model.reconstruct(image, noise)
    for key, value in dict(latent=latent, loss=loss, pred=prediction, mask=mask).items():
        yield key, value, case[key], case["tolerance"]
