"""The library is what the notebooks export, and the notebooks are clean; checked on a copy, so
nothing changes here.
"""
import filecmp, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from support import ROOT



def files(folder: Path, suffix: str) -> dict[str, Path]:
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob(f"*{suffix}"))
            if not {".ipynb_checkpoints", "__pycache__"} & set(p.parts)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    home = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "mimssl"):
        shutil.copytree(ROOT / name, home / name,
                        ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "settings.ini"): shutil.copy(ROOT / name, home / name)
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([str(Path(sys.executable).with_name(command))], cwd=home, check=True,
                       env=os.environ | {"PYTHONPATH": str(home)})
    return home


def same(copy: Path, folder: str, suffix: str, remedy: str):
    here, there = files(ROOT / folder, suffix), files(copy / folder, suffix)
    assert set(here) == set(there), f"only on one side: {set(here) ^ set(there)}; {remedy}"
    different = [name for name in here if not filecmp.cmp(here[name], there[name], shallow=False)]
    assert not different, f"{', '.join(different)}: {remedy}"


def test_the_library_is_what_the_notebooks_export(copy):
    same(copy, "mimssl", ".py", "run nbdev-export")


def test_notebooks_are_clean(copy): same(copy, "nbs", ".ipynb", "run nbdev-clean")
