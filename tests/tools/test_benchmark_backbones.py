"""The backbones' benchmark at a size at which it takes no time."""

import benchmark
import pytest
from benchmarks import backbones


def test_a_job_gives_medians_and_memory():
    thin = dict(dims=(32, 32, 32, 32), num_heads=(1, 1, 1, 1), depths=(1, 1, 1, 1))
    seconds, base, peak = backbones.forward_seconds("soft_tiny", dict(thin, inverse="solve"), 32, 1, 3)
    assert seconds > 0 and base > 0
    assert peak > 2**20


@pytest.mark.parametrize("option", [["--batch", "0"], ["--repeats", "-1"], ["--sizes", "224", "16"]])
def test_numbers_that_are_too_small_are_one_line(option, capsys):
    assert benchmark.main(["backbones", *option]) == 2
    least = 32 if option[0] == "--sizes" else 1
    assert capsys.readouterr().err == f"error: {option[0]} {option[-1]}: expected {least} or more\n"


def test_where_rows_cannot_be_written_is_told_before_anything_is_measured(tmp_path, capsys):
    for path in (tmp_path / "none" / "rows.json", tmp_path):
        assert benchmark.main(["backbones", "--json", str(path)]) == 2
        assert f"error: --json {path}: is a folder, or its folder is not there" in capsys.readouterr().err


def test_the_help_tells_what_there_is_to_measure(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    assert "Backbones in eval mode" in " ".join(capsys.readouterr().out.split())
