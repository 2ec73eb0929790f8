"""Tiles that were found on a device, and how they are found; the timing itself needs one."""

import json
import math

import pytest
import torch

pytest.importorskip("triton")
from visionkit_kernels import bench, bench_cases, depthwise, linear, march, sigmoid, tiles, tune  # noqa: E402

DEVICE = torch.device("cpu")


def test_finds_change_the_defaults_of_their_kernel_type_and_widths_alone():
    default = dict(D=64, DV=64, ROWS=64, num_warps=4)
    with tiles.forced({"linear apply 64 x 64 bfloat16": dict(ROWS=128)}):
        assert tiles.chosen("linear apply", default, torch.bfloat16, DEVICE) == dict(default, ROWS=128)
        for kernel, dtype, changed in (
            ("linear reduce", torch.bfloat16, default),
            ("linear apply", torch.float32, default),
            ("linear apply", torch.bfloat16, dict(default, DV=32)),
        ):
            assert tiles.chosen(kernel, changed, dtype, DEVICE) == changed
    assert tiles.chosen("linear apply", default, torch.bfloat16, DEVICE) == default


TUNED = {
    **{
        f"linear {kernel} 64 x 64 bfloat16": lambda kernel=kernel: linear.config(kernel, 64, 64, torch.bfloat16, DEVICE)
        for kernel in ("reduce", "apply", "backward queries", "backward keys")
    },
    **{
        f"sigmoid {way} 64 x 64 bfloat16": lambda way=way: sigmoid.config(
            64, 64, torch.bfloat16, DEVICE, way == "backward"
        )
        for way in ("forward", "backward")
    },
    **{
        f"depthwise {way} 3 bfloat16": lambda way=way: depthwise.config(way, 3, torch.bfloat16, DEVICE)
        for way in ("forward", "backward")
    },
    **{
        f"march {way} bfloat16": lambda way=way: march.config(torch.empty(1, dtype=torch.bfloat16), way == "backward")
        for way in ("forward", "backward")
    },
}


@pytest.mark.parametrize("key", TUNED)
def test_every_tuned_kernel_asks_for_its_finds(key):
    config = TUNED[key]
    assert config()["num_warps"] != 16
    with tiles.forced({key: dict(num_warps=16)}):
        assert config()["num_warps"] == 16
    knobs = next(knobs for name, knobs in tune.KNOBS.items() if key.startswith(name))
    assert set(knobs) <= set(config())


def test_descent_turns_one_knob_after_another():
    asked = []

    def seconds_of(sizes):
        asked.append(sizes)
        if sizes["warps"] == 8:
            return math.inf  # cannot be launched
        return abs(sizes["rows"] - 128) + abs(sizes["stages"] - 3) + 1

    best, least, first = tune.descend(
        dict(rows=32, warps=4, stages=1), dict(rows=(32, 64, 128), warps=(4, 8), stages=(1, 2, 3)), seconds_of
    )
    assert best == dict(rows=128, warps=4, stages=3) and (least, first) == (1, 99)
    assert len(asked) == len({tuple(each.items()) for each in asked})  # nothing is tried twice


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a device")
@pytest.mark.parametrize(("wrong", "expected"), [(None, dict(ROWS=16)), (16, dict(ROWS=32))])
def test_a_case_is_tuned_and_wrong_results_are_passed_over(monkeypatch, wrong, expected):
    """The kernels run in the interpreter; the fewer rows the faster, as far as the times tell."""
    from visionkit.ops import dispatch
    from visionkit.ops.attention import attend

    key = "sigmoid forward 16 x 16 float32"
    rows = lambda: tiles._forced[key]["ROWS"]

    def seconds(calls):
        calls[0]()
        return float(rows()), True

    agree = tune.agree
    monkeypatch.setattr(tune, "agree", lambda *results: agree(*results) and rows() != wrong)
    monkeypatch.setattr(bench, "median_seconds", seconds)
    monkeypatch.setattr(bench, "SETS_BYTES", 0)
    monkeypatch.setattr(tune, "KNOBS", {"sigmoid forward": dict(ROWS=(16, 32))})
    new = lambda: [torch.randn(1, 1, 40, 16).requires_grad_() for _ in range(3)]
    case = bench_cases.Case("sigmoid", "tiny", new, lambda *x: attend("sigmoid", *x), training=False)
    with dispatch.use_kernels("triton"):
        found = dict(tune.tune_case(case, {}, lambda: False))
        assert found == {key: expected}
        assert not dict(tune.tune_case(case, found, lambda: False))  # known by now
        assert not dict(tune.tune_case(case, {}, lambda: True))  # no time left


def test_a_case_that_fails_hides_no_other(monkeypatch, tmp_path, capsys):
    def tune_case(case, known, over):
        if case.job == "second":
            raise RuntimeError("out of resources")
        yield case.job, dict(ROWS=16)

    cases = lambda *jobs: lambda: iter([bench_cases.Case("sigmoid", job, list, list) for job in jobs])
    monkeypatch.setattr(tune, "tune_case", tune_case)
    monkeypatch.setitem(bench_cases.CASES, "sigmoid", cases("first", "second", "third"))
    monkeypatch.setitem(bench_cases.CASES, "march", cases("fourth"))
    monkeypatch.setattr(tiles, "architecture", lambda device: "sm_90")
    written = []
    monkeypatch.setattr(tune, "write", lambda path, architecture, found: written.append(list(found)))
    tune.tune(["sigmoid", "march"], tmp_path / "tiles.json")
    assert written == [["first", "third"], ["first", "third", "fourth"]]
    assert "sigmoid second: RuntimeError: out of resources" in capsys.readouterr().err
    written.clear()
    tune.tune(["sigmoid", "march"], tmp_path / "tiles.json", seconds=-1)
    assert written == [[], []]


def test_results_agree_but_for_rounding():
    x = torch.randn(100)
    assert tune.agree([x], [x + 1e-3 * x.abs().max()])
    assert not tune.agree([x], [x + x.abs().max()])
    assert not tune.agree([x / 0], [x])


def test_the_file_keeps_what_other_devices_found(tmp_path, monkeypatch):
    path = tmp_path / "tiles.json"
    monkeypatch.setattr(tiles, "FILE", path)
    tiles.read.cache_clear()
    assert tiles.read() == {}
    tune.write(path, "sm_80", {"march forward bfloat16": dict(RAYS=32)})
    tune.write(path, "sm_90", {"march forward bfloat16": dict(RAYS=128)})
    tune.write(path, "sm_90", {"march forward bfloat16": {}, "march backward bfloat16": dict(RAYS=32)})
    assert list(tiles.read()["sm_90"]) == ["march backward bfloat16"]  # a default that is the fastest needs no find
    assert tiles.read()["sm_80"] == json.loads(path.read_text())["sm_80"] == {"march forward bfloat16": {"RAYS": 32}}
    tiles.read.cache_clear()


def test_without_a_device_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
