"""Kind ``attention_module``: one attention layer alone, with its gradients."""

from collections.abc import Mapping

from reference.common import Checks, fill_state_dict, tensor
from torch import Tensor, nn

from visionkit.backbones import nalaformer
from visionkit.backbones.hybrid import AttentionChoice
from visionkit.backbones.mavit import GatedAttention
from visionkit.backbones.published import renamed
from visionkit.backbones.soft import RENAMES, SoftAttention
from visionkit.ops.gaussian import NEWTON_STEPS
from visionkit.ops.rotary import rotary_table_2d


def run(case: dict) -> Checks:
    """Output, gradients of the input and of the projections, rotary tables."""
    for item in case["cases"]:
        yield from RUNNERS[case["family"]](item, case["tolerance"])


def mala(item: dict, tolerance: float) -> Checks:
    """MALA's layer on a map (B, C, H, W)."""
    layer = GatedAttention(item["dim"], item["heads"], AttentionChoice("mala"))
    yield from on_map(layer, item, tolerance)


def nala(item: dict, tolerance: float) -> Checks:
    """NaLa's layer on a map (B, C, H, W)."""
    layer = nalaformer.GatedAttention(item["dim"], item["heads"], AttentionChoice("nala"))
    yield from on_map(layer, item, tolerance)


def on_map(layer: nn.Module, item: dict, tolerance: float) -> Checks:
    """A layer of maps (B, H, W, C) with rotary positions."""
    load(layer, item)
    name, table = item["name"], rotary_table_2d(*item["hw"], item["dim"] // item["heads"])
    for key, value in zip(("sin", "cos"), table):
        if key in item:
            yield f"{name} {key}", value, item[key], tolerance
    x = tensor(f"{name}.input", [2, item["dim"], *item["hw"]]).requires_grad_()
    y = layer(x.permute(0, 2, 3, 1), table).permute(0, 3, 1, 2)
    yield from compared(x, y, dict(layer.named_parameters()), item, tolerance)


def soft(item: dict, tolerance: float) -> Checks:
    """SOFT's and SOFT++'s layer on a sequence (B, H * W, C)."""
    symmetric = item["kind_of_attention"] == "soft_norm"
    steps = item.get("newton_iter", NEWTON_STEPS)
    layer = SoftAttention(item["dim"], item["heads"], item["ratio"], item["conv_size"], symmetric, newton_steps=steps)
    names = {
        key: renamed(f"block1.0.att.mha.{key}", RENAMES).removeprefix("stages.0.blocks.0.attn.")
        for key in item["state_dict"]
    }
    load(layer, item, names)
    x = tensor(f"{item['name']}.input", [2, item["hw"][0] * item["hw"][1], item["dim"]]).requires_grad_()
    y = layer(x.unflatten(1, item["hw"])).flatten(1, 2)
    own = dict(layer.named_parameters())
    yield from compared(x, y, {key: own[name] for key, name in names.items()}, item, tolerance)


def compared(x: Tensor, y: Tensor, parameters: Mapping[str, Tensor], item: dict, tolerance: float) -> Checks:
    """Output and gradients: of the input, and for every ``grad_<layer>`` of the weight of that published name."""
    name = item["name"]
    yield f"{name} output", y, item["output"], tolerance
    (y * tensor(f"{name}.cotangent", list(y.shape))).sum().backward()
    yield f"{name} grad_input", x.grad, item["grad_input"], tolerance
    for key, digest in item.items():
        if key.startswith("grad_") and key != "grad_input":
            gradient = parameters[f"{key.removeprefix('grad_')}.weight"].grad
            yield f"{name} {key}", gradient.reshape(digest["shape"]), digest, tolerance


def load(layer: nn.Module, item: dict, names: Mapping[str, str] | None = None) -> None:
    """Fill the layer by the published names; 1x1 convolutions are linear layers here."""
    state, own = fill_state_dict(item["state_dict"]), layer.state_dict()
    state = {(names or {}).get(key, key): value for key, value in state.items()}
    layer.load_state_dict({key: value.reshape(own[key].shape) for key, value in state.items()})
    layer.eval()


RUNNERS = dict(mala=mala, nala=nala, soft=soft)
