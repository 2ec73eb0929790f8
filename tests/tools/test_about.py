"""What results tell of their run."""

import subprocess

import about


def test_a_machine_without_git(monkeypatch):
    """It failed when all was measured."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert about.commit() == "unknown"


def test_a_processor_without_a_name(monkeypatch, tmp_path):
    """As Linux tells of ARM's. It failed when the first seed was trained."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nCPU architecture: 8\n")
    monkeypatch.setattr(about, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert about.about_run()["machine"].startswith("aarch64, ")


def test_results_are_no_change(monkeypatch, tmp_path):
    """A page is written again after every model."""
    monkeypatch.setattr(about, "ROOT", tmp_path)
    assert about.commit() == "unknown"
    (tmp_path / "docs" / "results").mkdir(parents=True)
    code, page = tmp_path / "code.py", tmp_path / "docs" / "results" / "page.md"
    code.touch(), page.touch()
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "All"]):
        subprocess.run(["git", *command], check=True, cwd=tmp_path)
    page.write_text("changed")
    assert not about.commit().endswith("-dirty")
    code.write_text("changed")
    assert about.commit().endswith("-dirty")


def test_the_commit_is_of_the_code_wherever_it_is_run(monkeypatch, tmp_path):
    here = about.commit()
    monkeypatch.chdir(tmp_path)
    assert about.commit() == here
