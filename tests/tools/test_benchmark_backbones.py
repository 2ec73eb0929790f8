"""The backbones' benchmark at a size at which it takes no time."""

from pathlib import Path

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")


def test_a_job_gives_medians_and_memory(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    from benchmarks import backbones

    thin = dict(dims=(32, 32, 32, 32), num_heads=(1, 1, 1, 1), depths=(1, 1, 1, 1))
    seconds, base, peak = backbones.forward_seconds("soft_tiny", dict(thin, inverse="solve"), 32, 1, 3)
    assert seconds > 0 and base > 0
    assert peak > 2**20
