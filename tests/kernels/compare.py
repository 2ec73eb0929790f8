"""Kernels against the PyTorch form in float64."""

import torch

from visionkit.ops import dispatch

# Largest error allowed, relative to the largest value. The interpreter truncates to bfloat16 where devices round: its
# products are off by up to 2^-7.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 6e-2}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def layout(x, order):
    """The same values with memory in another order: "heads", "tokens" (B, N, heads, dim) or "channels" (dim first)."""
    axes = dict(heads=(0, 1, 2, 3), tokens=(0, 2, 1, 3), channels=(3, 0, 1, 2))[order]
    back = [axes.index(i) for i in range(4)]
    return x.permute(axes).contiguous().permute(back)


def inputs(*shapes, dtype, order="heads", spread=1.0, seed=0):
    """Random leaves of that type and layout."""
    generator = torch.Generator().manual_seed(seed)
    new = [spread * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [layout(x.to(DEVICE, dtype), order).requires_grad_() for x in new]


def assert_near(actual, expected, tolerance, what):
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{what}: relative error {error:.1e}, allowed {tolerance:.1e}"


def in_form(form, function, **options):
    """The function, its operations as ``triton`` or ``torch`` says."""

    def run(*tensors):
        with dispatch.use_kernels(form):
            return function(*tensors, **options)

    return run


def assert_same(kernel, plain, tensors, *, tolerance=None):
    """Output and all gradients of ``kernel(*tensors)`` are those of ``plain`` in float64."""
    tolerance = tolerance or TOLERANCE[tensors[0].dtype]
    if tensors[0].dtype == torch.float64 and DEVICE == "cuda":
        tolerance = max(tolerance, 1e-6)  # Triton hands a device Python's numbers in float32
    wide = [x.detach().double().requires_grad_() for x in tensors]
    out, expected = kernel(*tensors), plain(*wide)
    assert out.dtype == tensors[-1].dtype
    assert_near(out, expected, tolerance, "output")
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE)
    grads = torch.autograd.grad(out, tensors, grad.to(out.dtype))
    for i, (actual, wanted) in enumerate(zip(grads, torch.autograd.grad(expected, wide, grad))):
        assert_near(actual, wanted, tolerance, f"gradient of input {i}")


def assert_same_forms(function, tensors, *, tolerance=None, **options):
    """The operation's kernel gives what its PyTorch form does."""
    forms = (in_form(form, function, **options) for form in ("triton", "torch"))
    assert_same(*forms, tensors, tolerance=tolerance)
