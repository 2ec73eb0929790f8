import argparse
import contextlib
import errno
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from visionkit.cli import COMMANDS, main, run_command
from visionkit.commands.doctor import OPTIONAL
from visionkit.engine.config import building, check_types, load_config
from visionkit.engine.pipeline import build_stage

ROOT = Path(__file__).parents[2]
PIPELINES = sorted(ROOT.glob("configs/*.py"))


@pytest.mark.parametrize("config", PIPELINES, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_read_and_its_stages_built(config):
    cfg = load_config(config)
    check_types(cfg)
    assert [build_stage(name, stage).name for name, stage in cfg["stages"].items()] == list(cfg["stages"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["render", "photo.jpg", "--fov", "wide"], "--fov: .*'wide'; see visionkit render --help"),
        (["render"], "required: .*; see visionkit render --help"),
        (["paint"], "'paint' .*render.*; see visionkit --help"),
        ([], "required: COMMAND; see visionkit --help"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.count("\n") == 1 and re.search(f"^error: .*{words}", told)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_what_it_does(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and len(capsys.readouterr().out) > 100


@pytest.mark.parametrize("option", ['stages={"a": [1, 2], "b": 3}', "seed=(1,2", "seed"])
@pytest.mark.parametrize("command", [["train", "config.py"], ["test", "config.py", "last.pth"]])
def test_an_option_that_cannot_be_read(command, option, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--cfg-options", option])
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--cfg-options" in message and option in message and "RecursionError" not in message


def test_doctor_tells_device_and_kernels(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert importlib.metadata.version("torch") in printed and "tensorboard" in printed and "pytest" not in printed
    assert "PyTorch forms" in printed or "Triton kernels" in printed


def test_doctor_tells_what_computes_on_a_mac(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert main(["doctor"]) == 0
    assert "mps in training; cpu elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_nothing_is_told_in_one_line(unbuffered):
    command = [str(Path(sys.executable).parent / "visionkit"), "doctor"]
    options = dict(stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, **options)
    assert done.returncode == 2 and done.stderr.startswith("error: the output: the disk is full"), done.stderr
    assert done.stderr.count("\n") == 1
    reader, writer = os.pipe()
    os.close(reader)  # as `visionkit doctor | true`
    done = subprocess.run(command, stdout=writer, **options)
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""


def test_an_interruption_of_a_script_without_commands_is_told_in_one_line(capsys):
    """As of tools/results_nvist.py: it ended in an AttributeError."""

    def work(options):
        raise KeyboardInterrupt

    assert run_command(work, argparse.Namespace()) == 130
    assert capsys.readouterr().err == "interrupted; what was unfinished is not kept\n"


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out",
        "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm) for file",
    ],
)
def test_workers_without_memory_are_told_in_one_line(message, capsys):
    def work(options):
        raise RuntimeError(message)

    assert run_command(work, argparse.Namespace(command="train")) == 2
    printed = capsys.readouterr().err
    assert "/dev/shm" in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    "error, words",
    [
        (MemoryError(), "memory is used up"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you"
            ),
            "memory is",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."), "memory is used up"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory is used up"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
    ],
)
def test_what_the_machine_lacks_is_told_in_one_line(error, words, capsys):
    def work(options):
        with building("stage source") if isinstance(error, MemoryError) else contextlib.nullcontext():
            raise error

    assert run_command(work, argparse.Namespace(command="train")) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


def test_other_errors_keep_their_traceback():
    for error in (RuntimeError("a bug"), OSError(errno.EBADF, "Bad file descriptor")):

        def work(options, error=error):
            raise error

        with pytest.raises(type(error)):
            run_command(work, argparse.Namespace(command="train"))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs a system with terminals that hang up")
def test_a_closed_terminal_ends_the_work_as_an_interruption_does(monkeypatch, capsys):
    cleared = []

    def work(options):
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1)
        finally:
            cleared.append(True)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a command
    try:
        assert run_command(lambda options: os.kill(os.getpid(), signal.SIGHUP) or 0, None) == 0
        signal.signal(signal.SIGHUP, signal.default_int_handler)  # so that the suite would live, too
        assert run_command(work, argparse.Namespace(command="convert")) == 129 and cleared
        assert signal.getsignal(signal.SIGHUP) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_home_that_cannot_be_written_to_is_no_word(tmp_path):
    """Matplotlib says it in two lines."""
    (tmp_path / "home").write_text("a file, where root cannot make a folder either")
    code = "import visionkit.cli; visionkit.cli.main(['doctor']); import matplotlib; matplotlib.get_configdir()"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MPLCONFIG", "XDG_"))}
    environment["HOME"] = str(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == ""


def test_a_current_folder_that_is_gone_is_told_in_one_line(monkeypatch, capsys):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == ("error: the current folder no longer exists; change to another\n")


def test_the_package_is_the_command_too():
    done = subprocess.run([sys.executable, "-m", "visionkit", "nothing"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: argument COMMAND: invalid choice")


def test_doctor_knows_every_extra():
    extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("dev = ")[0]
    names = set(re.findall(r'"([a-z-]+)>=', extras))
    assert names == {name for name, (extra, _) in OPTIONAL.items() if extra}


def test_importing_the_package_imports_nothing_heavy():
    heavy = "torch", "numpy", "mmengine", "timm", "cv2", "PIL"
    code = f"import sys, visionkit, visionkit.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_readme_names_files_that_are_there():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
