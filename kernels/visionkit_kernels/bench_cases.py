"""What the benchmark times: operations at the shapes that users have. Needs visionkit for the PyTorch forms."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Run = Callable[..., Tensor]
DEVICE = "cuda"
# batch, heads, and the image in tokens; the targets speak of the first and the fourth
SHAPES = [(64, 1, (56, 56)), (64, 2, (28, 28)), (1, 1, (250, 268)), (8, 16, (128, 128))]
SHAPES += [(8, 16, (64, 64)), (1, 16, (256, 512)), (8, 16, (32, 32))]
MAIN = SHAPES[0], SHAPES[3]


class Case(NamedTuple):
    """One operation at one shape.

    inputs: makes fresh random leaves. run: the operation on them. sdpa: softmax attention on them, or None.
    bytes: of each input read once and the output written once. flops: of the forward pass. compiled: whether to time
    ``torch.compile`` too, which takes seconds to start. reference_waits: the PyTorch form reads numbers back from the
    device, so that no graph can hold it; some versions of PyTorch do not recover from trying.
    """

    op: str
    job: str
    inputs: Callable[[], list[Tensor]]
    run: Run
    sdpa: Run | None = None
    bytes: int = 0
    flops: float = 0.0
    compiled: bool = False
    training: bool = True
    reference_waits: bool = False


def heads(
    batch: int, count: int, tokens: int, dim: int, tensors: int = 3, dtype: torch.dtype = torch.bfloat16
) -> Callable:
    """Makes q, k, v, or more such, as a model has them: views of (B, N, heads, dim)."""
    new = lambda: torch.randn(batch, tokens, count, dim, device=DEVICE, dtype=dtype).transpose(1, 2)
    return lambda: [new().requires_grad_() for _ in range(tensors)]


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention by FlashAttention-2."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def attention_case(
    op: str, shape: tuple, run: Run, compiled: bool = False, dim: int = 64, dtype: torch.dtype = torch.bfloat16
) -> Case:
    """An attention, beside softmax attention: by FlashAttention-2, but for float32, which that does not take."""
    batch, count, (height, width) = shape
    size, half = (batch, count, height * width, dim), dtype == torch.bfloat16
    job = " x ".join(map(str, size)) + ("" if half else ", fp32")
    softmax = flash if half else F.scaled_dot_product_attention
    return Case(
        op, job, heads(*size, dtype=dtype), run, softmax, 4 * dtype.itemsize * math.prod(size), compiled=compiled
    )


def rotary_of(shape: tuple, dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """Tables as a model keeps them."""
    from visionkit.ops import rotary_pairs, rotary_table_2d

    table = rotary_table_2d(*shape[-1], dim, device=DEVICE, dtype=dtype)
    return *table, rotary_pairs(*table)


def mala_cases() -> Iterator[Case]:
    """MALA, where the targets are also with a local branch and a gate."""
    from visionkit.ops import mala_attention

    for shape in SHAPES:
        table = rotary_of(shape)
        run = lambda *x, table=table, **gating: mala_attention(*x, rotary=table, **gating)
        case = attention_case("mala", shape, run, shape in MAIN)
        yield case
        if shape in MAIN:
            batch, count, (height, width) = shape
            yield from gated_cases(case.job, heads(batch, count, height * width, 64, 5), run, case.bytes * 6 // 4)


def linear_cases() -> Iterator[Case]:
    """Linear attention."""
    from visionkit.ops.attention import attend

    for shape in (SHAPES[0], *SHAPES[2:]):
        yield attention_case("linear", shape, lambda *x: attend("linear", *x), shape in MAIN)


def wide_cases() -> Iterator[Case]:
    """MALA and linear attention, a head of 128 channels."""
    from visionkit.ops import mala_attention
    from visionkit.ops.attention import attend

    for dtype in (torch.bfloat16, torch.float32):
        sizes = dict(dim=128, dtype=dtype)
        table = rotary_of(SHAPES[0], **sizes)
        run = lambda *x, table=table: mala_attention(*x, rotary=table)
        yield attention_case("mala", SHAPES[0], run, compiled=True, **sizes)
        yield attention_case("linear", SHAPES[0], lambda *x: attend("linear", *x), **sizes)


def nala_cases() -> Iterator[Case]:
    """NaLa."""
    from visionkit.ops import nala_attention

    for shape in SHAPES[:2]:
        table = rotary_of(shape)
        run = lambda *x, table=table: nala_attention(*x, rotary=table)
        yield attention_case("nala", shape, run, shape in MAIN)


def gated_cases(job: str, inputs: Callable, mala: Run, moved: int) -> Iterator[Case]:
    """MALA, then a local branch added and a gate multiplied: in its last pass, and in passes of their own."""
    together = lambda q, k, v, local, gate: mala(q, k, v, local=local, gate=gate)
    apart = lambda q, k, v, local, gate: (mala(q, k, v) + local) * gate
    yield Case("mala", f"{job}, gate fused", inputs, together, bytes=moved)
    yield Case("mala", f"{job}, gate apart", inputs, apart, bytes=moved)


def sigmoid_cases() -> Iterator[Case]:
    """Sigmoid attention."""
    from visionkit.ops.attention import attend

    for dim in (64, 128):
        for tokens in (4096, 16384):
            batch = 4 if tokens == 4096 else 1
            flops = 4.0 * batch * 16 * tokens**2 * dim
            new, run = heads(batch, 16, tokens, dim), lambda *x: attend("sigmoid", *x)
            job = f"{batch} x 16 x {tokens} x {dim}"
            yield Case("sigmoid", job, new, run, flash, flops=flops, compiled=tokens == 4096)


def gaussian_cases() -> Iterator[Case]:
    """SOFT's three stages at 224 pixels, its first at 1024 with as many landmarks, and at 512 with all of its own."""
    from visionkit.ops import gaussian_attention

    stages = ((64, 2, 3136, 49), (64, 4, 784, 49), (64, 10, 196, 49), (4, 2, 65536, 49), (4, 2, 16384, 256))
    for batch, count, tokens, marks in stages:
        new = lambda batch=batch, count=count, tokens=tokens, marks=marks: [
            torch.randn(batch, count, n, 32, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
            for n in (marks, tokens, tokens)
        ]
        for inverse in {3136: ("newton", "solve"), 16384: ("solve",)}.get(tokens, ("newton",)):
            run = lambda landmarks, q, v, inverse=inverse: gaussian_attention(
                q, None, v, landmarks=landmarks, inverse=inverse
            )
            job = f"{batch} x {count} x {tokens} x 32, {marks} landmarks, {inverse}"
            soft = lambda landmarks, q, v: flash(q, q, v)  # SOFT's keys are its queries
            yield Case("gaussian", job, new, run, soft, compiled=(tokens, inverse) == (3136, "newton"))


def depthwise_cases() -> Iterator[Case]:
    """MAViT-T's: positions, the values' local branch, the feed-forward part at 224 and at 1024 pixels, as it stands in
    inference and after GELU, as in training."""
    from visionkit.ops import depthwise_conv

    for shape, size, gelu in (
        ((64, 56, 56, 64), 3, False),
        ((64, 56, 56, 64), 5, False),
        ((64, 56, 56, 224), 3, False),
        ((64, 56, 56, 224), 3, True),
        ((4, 256, 256, 224), 3, False),
        ((4, 256, 256, 224), 3, True),
    ):

        def run(x: Tensor, weight: Tensor, bias: Tensor, residual: bool = size == 3, gelu: bool = gelu) -> Tensor:
            with torch.autocast(DEVICE, torch.bfloat16):
                return depthwise_conv(x, weight, bias, residual=residual, gelu=gelu)

        new = map_and_weights(shape, (shape[-1], 1, size, size), shape[-1:])
        job = f"{' x '.join(map(str, shape))}, {size} x {size}" + (", after GELU" if gelu else "")
        yield Case("depthwise", job, new, run, bytes=4 * math.prod(shape), compiled=shape[-1] == 224)


def norm_cases() -> Iterator[Case]:
    """Before a linear layer of MAViT-T's first and third stage at 224 pixels."""
    from visionkit.ops import layer_norm

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return layer_norm(x, weight, bias, 1e-6).to(x.dtype)

    for shape in ((64, 56, 56, 64), (64, 14, 14, 256)):
        new = map_and_weights(shape, shape[-1:], shape[-1:])
        yield Case("norm", " x ".join(map(str, shape)), new, run, bytes=4 * math.prod(shape), compiled=True)


def map_and_weights(shape: tuple, *weights: tuple) -> Callable:
    """Makes a map in bfloat16, and weights in float32, as training under autocast has them."""
    return lambda: [
        torch.randn(each, device=DEVICE, dtype=torch.float32 if i else torch.bfloat16).requires_grad_()
        for i, each in enumerate((shape, *weights))
    ]


def march_cases() -> Iterator[Case]:
    """NViST's field: a training step's rays, one frame, a frame of 1080 lines. Solid bumps in empty space."""
    for job, rays, dtype, ray_gradients in (
        ("165 000 rays, bf16", 165_000, torch.bfloat16, False),
        ("165 000 rays, fp32", 165_000, torch.float32, False),
        ("165 000 rays, bf16, gradients of rays too", 165_000, torch.bfloat16, True),
        ("160 x 90, bf16", 14_400, torch.bfloat16, False),
        ("1920 x 1080, bf16", 1920 * 1080, torch.bfloat16, False),
    ):
        new, run = march_job(rays, dtype, ray_gradients)
        training = rays < 10**6
        yield Case("march", job, new, run, compiled=rays == 14_400, training=training, reference_waits=True)


def march_job(rays: int, dtype: torch.dtype, ray_gradients: bool = False) -> tuple[Callable, Run]:
    """Inputs and rendering of the full-size model's renderer: 48 samples, a grid of 48, 8 + 24 channels.

    With gradients of rays, origins and directions are inputs, too.
    """
    from visionkit.ops import ColourNetwork, render_vector_matrix

    new = lambda *shape, scale=1.0: (torch.randn(*shape, device=DEVICE) * scale).requires_grad_()

    def inputs() -> list[Tensor]:
        planes, vectors = new(3, 1, 32, 48, 48), new(3, 1, 32, 48, 1)
        with torch.no_grad():  # smooth, so that space is empty or full and not noise
            planes[:] = F.interpolate(torch.randn(3, 32, 6, 6, device=DEVICE), 48, mode="bicubic")[:, None] * 2
            vectors[..., 0] = F.interpolate(torch.randn(3, 32, 6, device=DEVICE), 48, mode="linear")[:, None] * 2
        network = [new(64, 72, scale=0.1), new(64), new(64, 91, scale=0.1), new(64), new(3, 64, scale=0.1), new(3)]
        return [planes, vectors, *network, *(x.clone().requires_grad_() for x in view if ray_gradients)]

    turn = torch.rand(rays, device=DEVICE) * 6.3
    origins = torch.stack([turn.sin(), torch.rand(rays, device=DEVICE) * 0.4 - 0.2, turn.cos()], -1)[None] * 1.2
    directions = F.normalize(torch.randn(1, rays, 3, device=DEVICE) * 0.3 - origins, dim=-1)
    view = origins, directions
    near, far = torch.full((1, 1), 0.4, device=DEVICE), torch.full((1, 1), 2.0, device=DEVICE)
    box = torch.tensor([[-0.8] * 3, [0.8] * 3], device=DEVICE)

    def run(planes: Tensor, vectors: Tensor, *others: Tensor) -> Tensor:
        network, along = ColourNetwork(*others[:6]), others[6:] or view
        options = dict(sigma_dim=8, num_samples=48, chunk=8192, ray_gradients=ray_gradients)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            seen = render_vector_matrix(planes, vectors, network, *along, near, far, box, **options)
        return torch.cat([seen.rgb, seen.depth[..., None], seen.distortion[..., None]], dim=-1)

    return inputs, run


def model_cases() -> Iterator[Case]:
    """Forward and backward of MAViT-T under bf16 autocast."""
    import timm

    import visionkit.backbones  # noqa: F401  registers the models

    for batch, size in ((64, 224), (4, 1024)):
        model = timm.create_model("mavit_tiny", drop_path_rate=0.0).to(DEVICE).train()

        image = torch.randn(batch, 3, size, size, device=DEVICE)
        new = lambda model=model: list(model.parameters())

        def run(*_: Tensor, model: torch.nn.Module = model, image: Tensor = image) -> Tensor:
            with torch.autocast(DEVICE, torch.bfloat16):
                return model(image)

        yield Case("mavit_tiny", f"{batch} images of {size} pixels", new, run, compiled=size == 224)


ATTENTIONS = ("mala", "linear", "nala", "sigmoid", "gaussian")
ROTATED = (*ATTENTIONS, "depthwise", "norm")
CASES = dict(
    march=march_cases, models=model_cases, mala=mala_cases, linear=linear_cases, wide=wide_cases, nala=nala_cases,
    sigmoid=sigmoid_cases, gaussian=gaussian_cases, depthwise=depthwise_cases, norm=norm_cases,
)  # fmt: skip
