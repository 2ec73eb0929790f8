"""Studies side by side: order, failures and the file that is kept."""

import json
import multiprocessing
import sys
from pathlib import Path

import pytest
import run_all

STUDIES = Path(run_all.__file__).parent
STUDY = """
import time
from pathlib import Path

from study import write_json

def add_arguments(parser):
    parser.add_argument("given", nargs="*")
    parser.add_argument("--json", type=Path)

def run(options):
    json_file, (wanted, *given) = options.json, options.given
    if wanted:
        assert json_file.with_name(wanted).exists(), "started too early"
    write_json(json_file, dict(about="fake", rows=[dict(given=given)]))  # whole, as others read what is there
    time.sleep(60 * ("sleep" in given))
    return int("fail" in given)
"""


@pytest.fixture
def fake_study(monkeypatch, tmp_path):
    (tmp_path / "fake_study.py").write_text(STUDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("fake_study", None)


def test_parts_wait_for_others_and_are_put_together(fake_study, tmp_path):
    task = lambda part, wanted, *given, after=(): run_all.Task("fake_study", part, [wanted, *given], after)
    tasks = [
        task("b", "fake_study.a.json", "2", after=("fake_study a",)),
        task("a", "", "1"),
        task("c", "", "fail"),
        task("d", "", "4", after=("fake_study c",)),
    ]
    failed = run_all.run_tasks(tasks, 2, tmp_path, tmp_path)
    assert failed == ["fake_study c", "fake_study d"]
    found = json.loads((tmp_path / "studies.json").read_text())
    assert found == {"fake_study": dict(about="fake", rows=[dict(given=[x]) for x in ("2", "1", "fail")])}


def test_a_stop_ends_the_studies_first(fake_study, tmp_path, monkeypatch):
    """They wrote on while their folder was removed, which failed."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_all, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        run_all.run_tasks([run_all.Task("fake_study", "", ["", "sleep"])], 1, tmp_path, tmp_path)
    assert not multiprocessing.active_children()


def test_every_task_can_start(tmp_path):
    tasks = run_all.tasks(tmp_path, 10, tmp_path)
    names = {task.name for task in tasks}
    assert len(names) == len(tasks) and all(set(task.after) < names for task in tasks)
    assert all((STUDIES / f"{task.study}.py").exists() for task in tasks if task.study != "people")
