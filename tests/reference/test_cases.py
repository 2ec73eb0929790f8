"""Every reference case in ``cases/`` whose kind has a module, and the checker's own manners."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import check
from reference.common import fill, relative_error, tensor

SLOW = {"nvist_vm", "mavit_base", "soft_medium"}  # 216 million parameters; minutes on a busy machine
CASES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in sorted((Path(__file__).parent / "cases").glob("*.json"))
]


@pytest.mark.parametrize("path", CASES)
def test_case_matches(path, capsys):
    if check.read_case(path)["kind"] not in check.known_kinds():
        pytest.skip("no module for this kind yet")
    if path.stem in SLOW:  # as a user runs it, in a process that tells MKL how to round
        done = subprocess.run([sys.executable, check.__file__, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert check.check_case(path), capsys.readouterr().out


def test_fill_follows_the_rule():
    assert fill("a.num_batches_tracked", []).item() == 0
    assert (fill("a.running_var", [64]) >= 1).all()
    assert fill("a.weight", [64]).mean().item() == pytest.approx(1, abs=0.1)
    assert fill("a.weight", [32, 50, 2, 1]).std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.allclose(fill("a.bias", [5]), 0.1 * tensor("a.bias", [5]))


def digest_of(x):
    flat = x.flatten()
    return dict(
        shape=list(x.shape),
        mean=flat.mean().item(),
        std=flat.std(correction=0).item(),
        index=list(range(x.numel())),
        value=flat.tolist(),
    )


def test_relative_error_measures_in_std():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    digest = digest_of(x)
    assert relative_error(x, digest) < 1e-12
    moved = x.clone()
    moved[1, 2] += 0.5 * digest["std"]
    assert relative_error(moved, digest) == pytest.approx(0.5)
    assert relative_error(x + 0.3 * digest["std"], digest) == pytest.approx(0.3)
    assert relative_error(x.T, digest) == float("inf")
    moved[1, 2] = float("nan")
    assert relative_error(moved, digest) == float("inf")
    assert relative_error(torch.tensor(2.2), 2.0) == pytest.approx(0.1)


def test_a_field_that_a_case_of_nvist_lacks_is_not_compared(tmp_path, capsys):
    case = check.read_case(check.HERE / "cases" / "nvist_small_triplanes.json")
    case.update(depth=None, grad=None)
    del case["rgb_white_bg"], case["kept_as_built"]["encoder.pos_embed"]
    path = tmp_path / "case.json"
    path.write_text(json.dumps(case))
    assert check.main([str(path)]) == 0
    names = {line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert names == {"decoder.decoder_pos_embed", "latent", "matrix", "rgb", "weight", "distloss"}


@pytest.mark.parametrize(("family", "layer"), [("mala", "lepe"), ("nala", "out_proj"), ("soft", "W_v")])
def test_every_gradient_of_a_layer_is_compared(tmp_path, capsys, family, layer):
    case = check.read_case(check.HERE / "cases" / f"{family}_attention.json")
    case["cases"] = case["cases"][:1]
    item, path = case["cases"][0], tmp_path / "case.json"
    shape = item["state_dict"][f"{layer}.weight"]
    item[f"grad_{layer}"] = dict(shape=shape, mean=0.0, std=1e-9, index=[0], value=[0.0])
    path.write_text(json.dumps(case))
    assert check.main([str(path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(wrong) == 1 and wrong[0].endswith(f"grad_{layer}")
    item["grad_no_layer"] = item.pop(f"grad_{layer}")
    path.write_text(json.dumps(case))
    assert check.main([str(path)]) == 2
    assert "no_layer.weight" in capsys.readouterr().err


def test_checker_exit_statuses(tmp_path, capsys):
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps(dict(kind="no_such_kind")))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for path in (unknown, broken, tmp_path / "absent.json"):
        assert check.main([str(path)]) == 2
        error = capsys.readouterr().err
        assert path.name in error and error.count("\n") == 1 and "Traceback" not in error


def test_checker_fails_beyond_tolerance_and_says_what_is_missing(tmp_path, capsys):
    item = dict(name="x", shape=[4, 8], labels=[0, 0, 1, 1], num_classes=3)
    loss = dict(value=-1.0, grad=dict(shape=[4, 8], mean=0, std=1, index=[0], value=[0]))
    path = tmp_path / "case.json"
    path.write_text(json.dumps(dict(kind="reid_losses", tolerance=1e-5, cases=[dict(item, **{"triplet_0.3": loss})])))
    assert check.main([str(path)]) == 1
    assert "FAIL" in capsys.readouterr().out
    path.write_text(json.dumps(dict(kind="reid_losses", tolerance=1e-5)))
    assert check.main([str(path)]) == 2
    assert "'cases'" in capsys.readouterr().err
