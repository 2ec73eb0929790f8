"""Studies side by side: order, failures and the file that is kept."""

import json
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "tools" / "studies"
STUDY = """
import pathlib
from shapes import write_json

def main(arguments):
    json_file, wanted, *given = pathlib.Path(arguments[-1]), *arguments[:-2]
    if wanted:
        assert json_file.with_name(wanted).exists(), "started too early"
    write_json(json_file, dict(about="fake", rows=[dict(given=given)]))  # whole, as others read what is there
    assert "fail" not in given
"""


@pytest.fixture
def run_all(monkeypatch, tmp_path):
    (tmp_path / "fake_study.py").write_text(STUDY)
    monkeypatch.syspath_prepend(str(STUDIES))
    monkeypatch.syspath_prepend(str(tmp_path))
    import run_all

    yield run_all
    for name in ("run_all", "shapes", "fake_study"):
        sys.modules.pop(name, None)


def test_parts_wait_for_others_and_are_put_together(run_all, tmp_path):
    task = lambda part, wanted, *given, after=(): run_all.Task("fake_study", part, [wanted, *given], after)
    tasks = [
        task("b", "fake_study.a.json", "2", after=("fake_study a",)),
        task("a", "", "1"),
        task("c", "", "fail"),
        task("d", "", "4", after=("fake_study c",)),
    ]
    failed = run_all.run(tasks, 2, tmp_path, tmp_path)
    assert failed == ["fake_study c", "fake_study d"]
    found = json.loads((tmp_path / "studies.json").read_text())
    assert found == {"fake_study": dict(about="fake", rows=[dict(given=[x]) for x in ("2", "1", "fail")])}


def test_no_process_is_refused(run_all, tmp_path, monkeypatch, capsys):
    """It waited for ever."""
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--processes", "0", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        run_all.main()
    assert end.value.code == 2 and "--processes 0: expected 1 or more" in capsys.readouterr().err


def test_every_task_can_start(run_all, tmp_path):
    tasks = run_all.tasks(tmp_path, 10, tmp_path)
    names = {task.name for task in tasks}
    assert len(names) == len(tasks) and all(set(task.after) < names for task in tasks)
    assert all((STUDIES / f"{task.study}.py").exists() for task in tasks if task.study != "people")
