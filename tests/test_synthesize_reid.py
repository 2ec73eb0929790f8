"""The stand-in data: trees, names, counts, disjoint identities, repeatability, refusals."""

import contextlib
import functools
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

import visionkit.datasets
from visionkit.datasets.base import ReIDDataset
from visionkit.datasets.msmt17 import VERSIONS

SCRIPT = Path(__file__).parents[1] / "datasets" / "synthesize_reid.py"
sys.path.insert(0, str(SCRIPT.parent))
import stand_in  # noqa: E402
import synthesize_reid  # noqa: E402

NAMES = {
    "Market-1501-v15.09.15": re.compile(r"(-1|\d{4})_c([1-6])s[1-6]_\d{6}_\d{2}\.jpg"),
    "DukeMTMC-reID": re.compile(r"(\d{4})_c([1-8])_f\d{7}\.jpg"),
}
SPLITS = ("bounding_box_train", "bounding_box_test", "query")


def command(*args):
    """The script as a user runs it."""
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True)


def synthesize(*args):
    """The script in this process, which spares its imports."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            synthesize_reid.main([str(arg) for arg in (*args, "--workers", 1)])
            code = 0
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(args, code, "", errors.getvalue())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "tiny"
    done = synthesize("--out", out, "--scale", "tiny", "--seed", 3)
    assert done.returncode == 0, done.stderr
    return out


def labels(folder, pattern):
    return [(int(m[1]), int(m[2])) for m in (pattern.fullmatch(path.name) for path in folder.iterdir())]


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in files)).digest()


def refused(done, *words):
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("folder", NAMES)
def test_names_counts_and_disjoint_identities(tiny, folder):
    found = {split: labels(tiny / folder / split, NAMES[folder]) for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == [168, 120 if "Market" in folder else 108, 40]
    pids = {split: {pid for pid, _ in found[split]} for split in SPLITS}
    assert len(pids["bounding_box_train"]) == 24 and len(pids["query"]) == 16
    assert not pids["bounding_box_train"] & (pids["bounding_box_test"] | pids["query"])
    assert pids["query"] < pids["bounding_box_test"]
    assert ({-1, 0} <= pids["bounding_box_test"]) == ("Market" in folder)
    assert min(pids["bounding_box_train"] | pids["query"]) > 0


@pytest.mark.parametrize("folder", NAMES)
def test_every_query_has_a_match_in_another_camera(tiny, folder):
    gallery = labels(tiny / folder / "bounding_box_test", NAMES[folder])
    for pid, camera in labels(tiny / folder / "query", NAMES[folder]):
        assert any(other == pid and seen != camera for other, seen in gallery)


def test_pictures_have_the_size_of_the_real_ones(tiny):
    for path in tiny.rglob("query/*.jpg"):
        assert cv2.imread(str(path)).shape == (128, 64, 3)


def test_output_is_marked(tiny):
    assert "--scale tiny --seed 3" in (tiny / "SYNTHETIC.txt").read_text()


def test_workers_do_not_change_the_pictures_and_seeds_do(tiny, tmp_path):
    for seed, name in ((3, "same"), (4, "other")):
        assert command("--out", tmp_path / name, "--scale", "tiny", "--seed", seed, "--workers", 2).returncode == 0
    assert digest(tmp_path / "same") == digest(tiny)
    assert digest(tmp_path / "other") != digest(tiny)


def test_an_interrupted_run_is_done_again(tiny, tmp_path):
    out = tmp_path / "broken"
    shutil.copytree(tiny, out)
    lost = next(out.rglob("query/*.jpg"))
    lost.unlink()
    with (out / "SYNTHETIC.txt").open("a") as marker:
        marker.write("Unfinished\n")
    assert synthesize("--out", out, "--scale", "tiny", "--seed", 3).returncode == 0
    assert digest(out) == digest(tiny)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_in_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        stand_in.run(lambda: Path("/dev/full").write_bytes(b"picture"), "interrupted")
    assert "error: the disk is full; free some space and give the same command again\n" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        stand_in.run(lambda: (tmp_path / "file" / "out").mkdir(), "interrupted")
    assert f"error: {tmp_path}/file/out: Not a directory; check the path" in capsys.readouterr().err


def test_a_name_that_the_terminal_cannot_show_is_no_error():
    code = "import stand_in; stand_in.run(lambda: print('caf\\xe9 \\udcff'), 'interrupted')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(stand_in.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "caf\\xe9 \\udcff\n", done.stderr


def test_refuses_a_folder_that_may_hold_real_data(tmp_path):
    real = tmp_path / "Market-1501-v15.09.15"
    real.mkdir()
    refused(synthesize("--out", tmp_path, "--scale", "tiny"), str(tmp_path), "SYNTHETIC.txt")
    assert list(tmp_path.rglob("*")) == [real]


@pytest.mark.parametrize(
    "name", ["data", "Market-1501-v15.09.15", "VeRi", "data/Market-1501-v15.09.15/new", "veri/a/VeRi"]
)
def test_refuses_a_folder_where_real_data_belong(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    advice = tmp_path / ("data" if name.startswith("data") else "") / "synthetic"
    refused(synthesize("--out", name, "--scale", "tiny"), "real data sets", f"such as {advice}\n")
    assert not (tmp_path / name).exists()


def test_knows_the_folders_of_all_data_sets():
    classes = [each for each in vars(visionkit.datasets).values() if isinstance(each, type)]
    folders = {each.folder for each in classes if issubclass(each, ReIDDataset) and each.folder}
    assert {name.lower() for name in (*folders, *VERSIONS)} == synthesize_reid.REAL_NAMES


def test_a_finished_folder_is_left_alone(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert synthesize("--out", tiny, "--scale", "tiny", "--seed", 3).returncode == 0
    refused(synthesize("--out", tiny, "--scale", "tiny", "--seed", 4), "other settings or of another edition")
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_refuses_a_file(tmp_path):
    (tmp_path / "file").touch()
    refused(synthesize("--out", tmp_path / "file"), "expected a folder")


@pytest.mark.parametrize(
    "option, value", [("--scale", "huge"), ("--seed", "-1"), ("--seed", "x"), ("--workers", "0"), ("--colour", "red")]
)
def test_refuses_bad_arguments(tmp_path, option, value):
    refused(command("--out", tmp_path / "new", option, value), option)
    assert not (tmp_path / "new").exists()


def test_an_interruption_ends_in_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--scale", "small"]
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
    options = dict(stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeding)
    with subprocess.Popen(command, **options) as work:
        while work.poll() is None and not list(tmp_path.rglob("*.jpg")):
            time.sleep(0.05)
        os.killpg(work.pid, signal.SIGINT)
        assert work.wait(timeout=60) == 130
        assert work.stderr.read() == "interrupted; the same command makes the tree anew\n"


def test_an_interruption_while_processes_start_is_not_lost(monkeypatch):
    class Context:
        def Pool(self, *_):  # noqa: N802  (multiprocessing's name)
            signal.raise_signal(signal.SIGINT)  # to this thread: one to the process might reach another thread, later
            return contextlib.nullcontext()

    monkeypatch.setattr(stand_in.multiprocessing, "get_context", lambda _: Context())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            list(stand_in.in_processes(abs, [1], workers=2))
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_process_of_a_stand_in_ever_gets_an_interruption(tmp_path):
    script = tmp_path / "masks.py"
    script.write_text(
        "import signal, stand_in\n"
        "def blocked(_):\n    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "if __name__ == '__main__':\n    print(list(stand_in.in_processes(blocked, range(4), workers=2)), blocked(0))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    work = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=60)
    assert work.stdout == "[True, True, True, True] False\n", work.stderr
