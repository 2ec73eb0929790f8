"""Kind ``nvist``: encoder, decoder and renderer in eval mode, gradients included; rays without jitter."""

import torch
from reference.common import Checks, fill_state_dict, tensor

from visionkit.nvs.model import NViST
from visionkit.nvs.published import load_weights
from visionkit.ops.render import ray_edges, render_rays

TABLES = {
    "encoder.pos_embed": lambda model: model.encoder.pos_embed,
    "decoder.decoder_pos_embed": lambda model: model.decoder.decoder_pos_embed,
}
GRADIENTS = ("matrix", "vector", "rgb_mlp0")


def run(case: dict) -> Checks:
    """Position tables, tokens, grids, rendered rays, losses and gradients."""
    tolerance, digests = case["tolerance"], {key: value for key, value in case.items() if value is not None}
    model = _model(case)
    for key, table in TABLES.items():
        yield key, table(model), case["kept_as_built"][key], tolerance
    size, aabb = case["config"]["img_size"], torch.tensor(case["aabb"])
    origins, directions = torch.tensor(case["rays_origin"]), torch.tensor(case["rays_direction"])
    image = tensor(case["name"] + ".image", [len(origins), 3, *size]).sigmoid()
    with torch.no_grad():
        yield "latent", model.encoder(image), case["latent"], tolerance
        grids = model.represent(image, torch.tensor(case["camera_params"]))[:2]  # planes and vectors
    for name, grid in zip(("matrix", "vector"), grids):
        if name in digests:
            yield name, grid.requires_grad_(), digests[name], tolerance
    edges = ray_edges(*case["near_far"], model.num_samples, origins)
    for dense in (False, True) if model.renderer.representation == "vector_matrix" else (False,):
        label = " (dense density)" if dense else ""
        field = model.renderer.field(*grids, dense=dense)
        seen = render_rays(field, origins, directions, edges, aabb, keep_weights=True)
        yield "rgb" + label, seen.rgb, case["rgb"], tolerance
        yield "depth" + label, seen.depth, case["depth"], tolerance
        yield "weight" + label, seen.weights, case["weight"], tolerance
        distortion = seen.distortion.mean()
        yield "distloss" + label, distortion, case["distloss"], tolerance
        white = render_rays(field, origins, directions, edges, aabb, background=torch.ones(3))
        yield "rgb_white_bg" + label, white.rgb, case["rgb_white_bg"], tolerance
        loss = (seen.rgb * tensor(case["name"] + ".cotangent", list(seen.rgb.shape))).sum() + distortion
        variables = dict(zip(GRADIENTS, (*grids, model.renderer.rgb_mlp[0].weight)))
        wanted = [name for name in GRADIENTS if case["grad"].get(name) is not None]
        gradients = torch.autograd.grad(loss, [variables[name] for name in wanted])
        for name, gradient in zip(wanted, gradients):
            yield f"grad {name}{label}", gradient, case["grad"][name], tolerance


def _model(case: dict) -> NViST:
    options = {key: value for key, value in case["config"].items() if key != "using_sigma_mlp"}
    model = NViST(**options, lpips_weight=0).eval()
    shapes = {key: shape for key, shape in case["state_dict"].items() if key not in case["kept_as_built"]}
    load_weights(model, fill_state_dict(shapes), "reference case")
    return model
