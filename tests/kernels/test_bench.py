"""What the benchmark measures; the times themselves need a device."""

import functools

import pytest
import torch

pytest.importorskip("triton")
from visionkit_kernels import bench, bench_cases  # noqa: E402

from visionkit.ops.dispatch import use_kernels  # noqa: E402

SMALL = [(1, 2, (2, 3))] * 6
CEILINGS = dict(copy_bytes_per_second=1e12, product_flops_per_second=1e15)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Every call is made once, and takes a second and no memory."""

    def once(calls, graph=True):
        calls[0]()
        return 1.0, True

    monkeypatch.setattr(bench_cases, "DEVICE", "cpu")
    monkeypatch.setattr(bench, "SETS_BYTES", 0)
    monkeypatch.setattr(bench, "median_seconds", once)
    monkeypatch.setattr(bench, "_peak", lambda call: 0)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.parametrize("op", bench.CASES)
def test_every_operation_has_a_shape_that_torch_compile_runs_and_attentions_run_beside_softmax(op):
    cases = list(bench.CASES[op]())
    assert any(case.compiled for case in cases)
    assert op not in bench_cases.ATTENTIONS or all(case.sdpa or "gate" in case.job for case in cases)


@pytest.mark.parametrize("op", ["mala", "linear"])
def test_the_lengths_that_targets_speak_of(op):
    assert {1024, 4096, 16384, 67000, 131072} <= {
        int(case.job.split(" x ")[2].split(",")[0]) for case in bench.CASES[op]()
    }


def small_case(op, monkeypatch):
    """The operation's first case that is compiled, at a size for the interpreter."""
    monkeypatch.setattr(bench_cases, "SHAPES", SMALL)
    monkeypatch.setattr(bench_cases, "MAIN", SMALL[:1])
    case = next(case for case in bench.CASES[op]() if case.compiled)
    if op == "march":
        inputs, run = bench_cases.march_job(20, torch.bfloat16)
        return case._replace(inputs=inputs, run=run)
    if op == "gaussian":
        return case._replace(inputs=lambda: [torch.randn(1, 2, n, 32).requires_grad_() for n in (5, 9, 9)])
    if op in ("depthwise", "norm"):
        weights = [x.shape for x in case.inputs()[1:]]
        return case._replace(inputs=bench_cases.map_and_weights((1, 2, 3, weights[0][0]), *weights))
    return case._replace(inputs=bench_cases.heads(1, 2, 6, 64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a device")
@pytest.mark.parametrize("op", ["march", *bench.ROTATED])
def test_all_forms_of_a_case_run(op, monkeypatch):
    """Gaussian attention stood beside no softmax, and all but MALA beside no ``torch.compile``."""
    row = bench.measure(small_case(op, monkeypatch), CEILINGS, True)
    forms = ("", "reference_", "compiled_") + (("sdpa_",) if op in bench_cases.ATTENTIONS else ())
    assert {f"{form}{name}" for form in forms for name in ("seconds", "step_seconds")} <= set(row)
    assert not any("failed" in name for name in row), row


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a device")
def test_a_march_with_gradients_of_rays_has_them_in_its_step():
    inputs, run = bench_cases.march_job(3, torch.float32, ray_gradients=True)
    leaves = inputs()
    with use_kernels("torch"):
        grads = torch.autograd.grad(run(*leaves).sum(), leaves)
    assert [grad.shape for grad in grads[-2:]] == [(1, 3, 3)] * 2 and all(grad.abs().max() > 0 for grad in grads[-2:])


def test_a_form_that_fails_leaves_the_kernel_s_own_times():
    def fails(*_):
        raise AssertionError("cannot be compiled")

    sets = lambda: [torch.randn(1, 2, 6, 16).requires_grad_() for _ in range(3)]
    case = bench.Case("linear", "tiny", sets, lambda q, k, v: q + v, sdpa=fails)
    row = bench.measure(case, CEILINGS, False)
    assert row["seconds"] == 1 and row["sdpa_failed"] == "AssertionError: cannot be compiled"


def test_a_case_that_cannot_be_made_hides_no_other(monkeypatch):
    def cases():
        yield bench.Case("broken", "first", lambda: [], lambda: None)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setitem(bench.CASES, "broken", cases)
    first, last = bench.cases_of("broken")
    assert first.job == "first" and last.op == "broken"
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        bench.measure(last, CEILINGS, False)


def test_the_benchmark_without_a_device(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench.main(["--op", "linear"]) == 2
    assert "CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["--op", "nothing"])


def test_a_machine_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("COMMIT", "1234abc")
    assert bench.commit() == "1234abc"
