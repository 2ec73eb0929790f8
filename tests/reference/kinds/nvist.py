"""Kind ``nvist``: encoder, decoder and renderer in eval mode, gradients included; rays without jitter."""

from collections.abc import Iterator

import torch
from reference.common import Checks, fill_state_dict, tensor
from torch import Tensor

from visionkit.nvs.model import NViST
from visionkit.nvs.published import load_weights
from visionkit.ops.render import ray_edges, render_rays

TABLES = {
    "encoder.pos_embed": lambda model: model.encoder.pos_embed,
    "decoder.decoder_pos_embed": lambda model: model.decoder.decoder_pos_embed,
}
GRADIENTS = ("matrix", "vector", "rgb_mlp0")


def run(case: dict) -> Checks:
    """Position tables, tokens, grids, rendered rays, losses and gradients, each where the case gives its digest."""
    for name, value, digest in _values(case):
        if digest is not None:
            yield name, value, digest, case["tolerance"]


def _values(case: dict) -> Iterator[tuple[str, Tensor, dict | float | None]]:
    model = _model(case)
    for key, table in TABLES.items():
        yield key, table(model), case["kept_as_built"].get(key)
    size, aabb = case["config"]["img_size"], torch.tensor(case["aabb"])
    origins, directions = torch.tensor(case["rays_origin"]), torch.tensor(case["rays_direction"])
    image = tensor(case["name"] + ".image", [len(origins), 3, *size]).sigmoid()
    with torch.no_grad():
        yield "latent", model.encoder(image), case.get("latent")
        grids = model.represent(image, torch.tensor(case["camera_params"]))[:2]  # planes and vectors
    for name, grid in zip(("matrix", "vector"), grids):
        if grid is not None:
            yield name, grid.requires_grad_(), case.get(name)
    edges = ray_edges(*case["near_far"], model.num_samples, origins)
    for dense in (False, True) if model.renderer.representation == "vector_matrix" else (False,):
        label = " (dense density)" if dense else ""
        field = model.renderer.field(*grids, dense=dense)
        seen = render_rays(field, origins, directions, edges, aabb, keep_weights=True)
        yield "rgb" + label, seen.rgb, case.get("rgb")
        yield "depth" + label, seen.depth, case.get("depth")
        yield "weight" + label, seen.weights, case.get("weight")
        distortion = seen.distortion.mean()
        yield "distloss" + label, distortion, case.get("distloss")
        white = render_rays(field, origins, directions, edges, aabb, background=torch.ones(3))
        yield "rgb_white_bg" + label, white.rgb, case.get("rgb_white_bg")
        loss = (seen.rgb * tensor(case["name"] + ".cotangent", list(seen.rgb.shape))).sum() + distortion
        variables = dict(zip(GRADIENTS, (*grids, model.renderer.rgb_mlp[0].weight)))
        known = {name: digest for name, digest in (case.get("grad") or {}).items() if digest is not None}
        gradients = torch.autograd.grad(loss, [variables[name] for name in known]) if known else ()
        for (name, digest), gradient in zip(known.items(), gradients):
            yield f"grad {name}{label}", gradient, digest


def _model(case: dict) -> NViST:
    options = {key: value for key, value in case["config"].items() if key != "using_sigma_mlp"}
    model = NViST(**options, lpips_weight=0).eval()
    shapes = {key: shape for key, shape in case["state_dict"].items() if key not in case["kept_as_built"]}
    load_weights(model, fill_state_dict(shapes), "reference case")
    return model
