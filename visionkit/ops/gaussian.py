"""Softmax-free Gaussian attention (SOFT, SOFT++).

Queries and keys are the same; the N x N Gaussian kernel is replaced by its Nystrom form over a few landmarks.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from visionkit.checks import check_choice
from visionkit.ops import dispatch
from visionkit.ops.precision import without_autocast

INVERSES = ("newton", "solve")
LANDMARKS = 49
NEWTON_STEPS = 20
RIDGE = 0.01  # of SOFT
SMALL = 64  # landmarks whose matrices a kernel solves with; with more PyTorch does, whatever was asked for
SOLVE_RIDGE = 1e-6  # keeps a direct solve without a ridge finite where landmarks coincide


def gaussian_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    *,
    landmarks: Tensor | None = None,
    scale: float | None = None,
    symmetric: bool = False,
    inverse: str = "newton",
    steps: int = NEWTON_STEPS,
) -> Tensor:
    """Attention by a Gaussian kernel, without softmax, through m landmarks.

    With k(x, y) = exp(-|x - y|^2 / 2), A = k(landmarks, landmarks) and P = k(landmarks, q):

        SOFT:    out = P^T (A + 0.01 I)^-1 P v
        SOFT++:  out = P^T D^-1/2 A^-1 D^-1/2 P v,   D = diag(row sums of A)

    Lu et al., SOFT: Softmax-free Transformer with Linear Complexity, NeurIPS 2021, and Softmax-free Linear
    Transformers, IJCV 2024, arXiv 2207.03341.

    Complexity: N m dim + m^3 time, in float32 at least. Not for cross-attention, for the queries are the keys, nor for
    rows that must sum to one.

    ``inverse="newton"`` is the released code's: 20 Newton steps. SOFT starts each matrix at its own scale and takes the
    gradient of the inverse; SOFT++ starts all matrices of the batch at one scale, takes the gradient through the steps,
    and has not always converged. ``"solve"`` solves the linear system, with the gradient of the solution. This gradient
    and SOFT's are first derivatives alone: a second one comes out wrong.

    Args:
        q: (B, heads, N, dim).
        k: not used; it stands here because every attention takes q, k and v.
        v: (B, heads, N, dim_v).
        landmarks: (B, heads, m, dim), to be compared with scaled queries; default the means of 49 even runs of them
            (all of them, if there are fewer).
        scale: factor of q; default dim ** -0.25.
        symmetric: compute SOFT++ instead of SOFT.
        inverse: ``"newton"`` or ``"solve"``, as above.
        steps: Newton steps; the released code's 20 are an option of its configuration.

    Returns:
        (B, heads, N, dim_v), in the type of ``v``.

    Raises:
        VisionKitError: an unknown ``inverse``.
    """
    check_inverse(inverse)
    dtype = torch.promote_types(v.dtype, torch.float32)
    with without_autocast(v):
        scale = q.shape[-1] ** -0.25 if scale is None else scale
        landmarks = even_means(q.to(dtype)) * scale if landmarks is None else landmarks.to(dtype)
        kernel = dispatch.kernel("gaussian_attention", landmarks, q, v)
        # Without SOFT's ridge the matrix of close landmarks is positive definite only in double precision, in which
        # alone an inverse is as good as a solution.
        exact = inverse == "solve" and (symmetric or kernel) and v.device.type != "mps"
        a = landmark_kernel(landmarks.double() if exact else landmarks)
        if kernel:
            invert = dispatch.kernel("inverse", landmarks) if exact and landmarks.shape[-2] <= SMALL else None
            eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
            return kernel(landmarks, q, v, between_products(a, eye, symmetric, inverse, steps, invert), scale)
        scaled = q.to(dtype) if scale == 1 else q.to(dtype) * scale  # a pass over the map that backbones do without
        p = gaussian_kernel(landmarks, scaled)
        core = between_products(a, (p @ v.to(dtype)).to(a.dtype), symmetric, inverse, steps)
        out = p.transpose(-2, -1) @ core.to(dtype)
    return out.to(v.dtype)


def between_products(
    a: Tensor, x: Tensor, symmetric: bool, inverse: str, steps: int, invert: Callable | None = None
) -> Tensor:
    """(A + 0.01 I)^-1 x, or of SOFT++ D^-1/2 A^-1 D^-1/2 x: (..., m, m), (..., m, d) -> (..., m, d)."""
    root = a.sum(dim=-1, keepdim=True).rsqrt() if symmetric else None
    x = x * root if symmetric else x
    if inverse == "solve":
        x = solve(add_ridge(a, SOLVE_RIDGE if symmetric else RIDGE), x, invert)
    else:
        x = (newton_inverse_shared if symmetric else newton_inverse)(a, steps=steps) @ x
    return x * root if symmetric else x


def check_inverse(inverse: str) -> None:
    """Raises VisionKitError for an unknown one."""
    check_choice("", INVERSES, inverse=inverse)


def even_means(q: Tensor) -> Tensor:
    """Means of 49 even runs of tokens, or all tokens: (B, heads, N, dim) -> (B, heads, min(49, N), dim)."""
    runs = adaptive_avg_pool1d(q.transpose(-2, -1).flatten(0, 1), min(LANDMARKS, q.shape[-2]))
    return runs.unflatten(0, q.shape[:2]).transpose(-2, -1)


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x - y|^2 / 2) of all pairs: (..., m, dim), (..., n, dim) -> (..., m, n)."""
    return exponents(x, y).exp()


def landmark_kernel(x: Tensor) -> Tensor:
    """The same of the pairs of one set: (..., m, dim) -> (..., m, m).

    A landmark's with itself is 1 without rounding, which SOFT++'s steps would double up to twenty times.
    """
    itself = torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
    return exponents(x, x).masked_fill(itself, 0).exp()


def exponents(x: Tensor, y: Tensor) -> Tensor:
    """-|x - y|^2 / 2 of all pairs: (..., m, dim), (..., n, dim) -> (..., m, n).

    The square is expanded into one product, [x, -|x|^2 / 2, 1] [y, 1, -|y|^2 / 2]^T: large maps are passed over once. A
    tiny negative distance, from rounding, is far below what the exponential resolves.
    """
    half_x, half_y = -x.square().sum(-1, keepdim=True) / 2, -y.square().sum(-1, keepdim=True) / 2
    x = torch.cat([x, half_x, torch.ones_like(half_x)], dim=-1)
    y = torch.cat([y, torch.ones_like(half_y), half_y], dim=-1)
    return x @ y.transpose(-2, -1)


def add_ridge(a: Tensor, ridge: float) -> Tensor:
    """a + ridge * I, (..., m, m)."""
    return a + ridge * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def solve(a: Tensor, b: Tensor, invert: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """a^-1 b by Cholesky factors, with no check that would stop the device; the gradient is that of the solution.

    Args:
        a: (..., m, m), symmetric and positive definite.
        b: (..., m, d).
        invert: a kernel to be used instead, with a and b in float64.

    Returns:
        (..., m, d).
    """
    if invert:
        with torch.no_grad():
            inverse = invert(a)
        return with_gradient(inverse, a) @ b
    with torch.no_grad():
        factor = torch.linalg.cholesky_ex(a, upper=True)[0]  # LAPACK's side: a little faster than the lower one
    if needs_gradient(a):
        with torch.no_grad():
            x = torch.cholesky_solve(b, factor, upper=True)
        b = b - (a - a.detach()) @ x  # the second term is zero and carries a's gradient
    return torch.cholesky_solve(b, factor, upper=True)


def with_gradient(inverse: Tensor, a: Tensor) -> Tensor:
    """The inverse (..., m, m) of ``a``, taken without a gradient, with that of an inverse: dA = -Y^T dY Y^T."""
    if not needs_gradient(a):
        return inverse
    return inverse - inverse @ (a - a.detach()) @ inverse  # the second term is zero and carries the gradient


def needs_gradient(a: Tensor) -> bool:
    """Whether a gradient may be asked for; of a trace, which is one graph for both modes, always."""
    return (a.requires_grad and torch.is_grad_enabled()) or torch.jit.is_tracing()


def newton_inverse(a: Tensor, steps: int = NEWTON_STEPS) -> Tensor:
    """SOFT's inverse, of a + 0.01 I; its gradient is that of an inverse, dA = -Y^T dY Y^T, taken once.

    Args:
        a: (..., m, m), symmetric and not negative; each starts at its own scale, taken without the ridge.
    """
    with torch.no_grad():
        alpha = 1.8 / a.sum(dim=-1).amax(dim=-1).square()[..., None, None]
        ridged = add_ridge(a, RIDGE)
        inverse = newton_steps(ridged, alpha * ridged, steps)
    return with_gradient(inverse, a)


def newton_inverse_shared(a: Tensor, steps: int = NEWTON_STEPS) -> Tensor:
    """SOFT++'s inverse (..., m, m): one starting scale for all matrices; the gradient runs through it and every step.

    The scale is halved, at most ten times, until no column of I - A V_0 sums to more than 1.01.
    """
    if a.numel() == 0:  # an empty batch has no largest sum
        return a
    alpha = 2 / a.sum(dim=-1).flatten().amax(dim=-1).square()
    with torch.no_grad():
        halvings = 0.5 ** torch.arange(11, dtype=a.dtype, device=a.device)
        square, eye = a @ a, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        # all candidates at once, so that no value has to come back from the device
        scales = (alpha * halvings).unbind()
        excess = torch.stack([(eye - scale * square).abs().sum(dim=-2).flatten().amax(dim=-1) for scale in scales])
        passed = excess <= 1.01
        halving = halvings.gather(0, torch.where(passed.any(), passed.int().argmax(), 10).view(1))
    return newton_steps(a, alpha * halving * a, steps)


def newton_steps(a: Tensor, start: Tensor, steps: int) -> Tensor:
    """V <- 2 V - V A V for so many steps; all are (..., m, m)."""
    if not (torch.is_grad_enabled() and a.requires_grad) and (kernel := dispatch.kernel("newton_steps", a, start)):
        return kernel(a, start, steps)
    v = start
    for _ in range(steps):
        v = 2 * v - v @ (a @ v)
    return v
