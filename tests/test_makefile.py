"The Makefile in a folder whose name has spaces, and with an environment elsewhere that has too."
import os, shutil, subprocess
from pathlib import Path
import pytest
from support import ROOT

FILES = ("Makefile", "requirements.lock", "pyproject.toml")
PROGRAMS = ("python", "uv", "dvc", "nbdev-test", "jupyter", "jupyter-book")
STARTED = {"data": ["python"], "figures": ["python"] * 4, "bench": ["python"] * 5,
           "gpu": ["python"] * 2, "reproduce": [*["python"] * 3, "dvc"],
           "test": ["python", "nbdev-test", "python"],
           "lab": ["jupyter"], "notebooks": ["python"] * 2, "docs": ["jupyter-book"]}


@pytest.fixture(params=[".venv", "an env", "/elsewhere/my env"])
def place(tmp_path, request):
    "A checkout and its environment, with programs that only say that they were started."
    home = tmp_path / "my own folder"
    env = tmp_path / request.param[1:] if request.param[0] == "/" else home / request.param
    (env / "bin").mkdir(parents=True); (home / "outputs/figures").mkdir(parents=True)
    (home / "outputs/figures/results.txt").write_text("a table\n")
    for name in FILES: shutil.copy(ROOT / name, home / name)
    for name in PROGRAMS:
        file = env / "bin" / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/started"\n')
        file.chmod(0o755)
    (env / ".ready").touch()
    peers = home / ".venv-bench"          # of `make bench`, made already
    (peers / "bin").mkdir(parents=True)
    shutil.copy(env / "bin/python", peers / "bin/python")
    (peers / ".ready").touch()
    for name in FILES: os.utime(home / name, (0, 0))
    os.utime(env / ".ready", (1, 1))
    return home, env, str(env) if request.param[0] == "/" else request.param


def make(home: Path, *argv) -> str:
    found = subprocess.run(["make", "--no-print-directory", *argv], cwd=home, text=True,
                           capture_output=True, env=os.environ | {"MAKEFLAGS": ""})
    assert found.returncode == 0 and not found.stderr, found.stdout + found.stderr
    return found.stdout


def test_every_target_starts_its_programs(place, tmp_path):
    home, _, env = place
    for target, programs in STARTED.items():
        make(home, target, f"VENV={env}", "N=a.ipynb", "DATA=real data")
        started = (tmp_path / "started").read_text().splitlines()
        assert [line.split()[0] for line in started] == programs, (target, started)
        (tmp_path / "started").unlink()
    assert "environment" not in make(home, "env", f"VENV={env}")
    assert "reproduce" in make(home, "help", f"VENV={env}")


def test_the_environment_is_made_where_it_is_asked_for(place, tmp_path):
    home, env, given = place
    os.utime(home / "requirements.lock")
    told = make(home, "env", f"VENV={given}", "TORCH=torch==9.9")
    assert f"environment: {given}" in told
    assert (env / ".ready").stat().st_mtime >= (home / "requirements.lock").stat().st_mtime
    pins = (env / "rest.lock").read_text()
    assert "numpy==" in pins and "\ntorch==" not in pins
    started = (tmp_path / "started").read_text().splitlines()
    assert [f"--python {env}/bin/python" in line for line in started] == [True] * 3


def test_clean_removes_the_environment_alone(place):
    home, env, given = place
    beside = [home / name for name in ("an", "my", "env", "own")]
    for folder in beside: folder.mkdir()
    make(home, "clean", f"VENV={given}")
    assert not env.exists() and all(folder.is_dir() for folder in beside)
    assert (home / "outputs/figures/results.txt").is_file()
