"Shards, the image cache and loading processes: the same bits however images reach the step."
import shutil, signal, subprocess
from contextlib import contextmanager
import pytest
from mimssl.training.checkpoints import load_state
from support.forks import Forks
from support.tiny import make_study
from test_resume import AT_STEP, TRAIN

SHARDS = """
from pathlib import Path
from mimssl.data.shards import write_shards
from mimssl.data.sources import open_dataset
write_shards(open_dataset("stripes", "train"), Path("packed").absolute(), "train", megabytes=.01)
"""
# a checkpoint after every step
EACH_STEP = """
import mimssl.training.loop as loop
loop.go.__defaults__ = tuple(0. if d == 120. else d for d in loop.go.__defaults__)
loop.train.__defaults__ = tuple(0. if d == 120. else d for d in loop.train.__defaults__)
assert 0. in loop.train.__defaults__
"""
SETTING = "import os; os.environ['{name}'] = '{value}'\n"


def weights(home, run: str) -> bytes: return (home / run / "method.safetensors").read_bytes()


def test_shards_resume_within_an_epoch(tmp_path):
    make_study(tmp_path, packed={"dataset": "packed"})
    train = TRAIN.replace("--recipe mae", "--recipe packed")
    with Forks(tmp_path) as run:
        status, text = run(SHARDS)
        assert status == 0, text
        assert len(list(tmp_path.glob("packed/train-*.tar"))) > 3
        settings = tmp_path / "settings.ini"
        settings.write_text(settings.read_text().replace("[machine]", "packed = packed\n[machine]"))
        status, text = run(train.format(out="whole"))
        assert status == 0, text
        # 4 steps an epoch: killed in the second and in the third one, with other workers each time
        for step, workers in ((6, 1), (11, 2)):
            script = SETTING.format(name="MIMSSL_WORKERS", value=workers)
            status, text = run(script + EACH_STEP + AT_STEP.format(step=step)
                               + train.format(out="killed"))
            assert status == -signal.SIGKILL, text
            state, = tmp_path.glob("outputs/local/checkpoints/*/rolling.pt")
            assert load_state(state)["step"] == step, "the run goes on within an epoch"
        status, text = run(train.format(out="killed"))
        assert status == 0, text
    assert weights(tmp_path, "whole") == weights(tmp_path, "killed")


def test_workers_and_cache_change_no_bit(tmp_path):
    make_study(tmp_path)
    with Forks(tmp_path) as run:
        for name, changed in {"plain": {}, "worker": {"MIMSSL_WORKERS": 1},
                              "none": {"MIMSSL_IMAGE_CACHE": 0}}.items():
            script = "".join(SETTING.format(name=k, value=v) for k, v in changed.items())
            status, text = run(script + TRAIN.format(out=name))
            assert status == 0, text
            assert ("cannot be kept" in text) == (name == "none"), text
            shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
    assert weights(tmp_path, "plain") == weights(tmp_path, "worker") == weights(tmp_path, "none")


@contextmanager
def small_disk(folder, kilobytes: int = 3000, free: int = 24):
    "A file system of 3 MB with 24 kB free; skips where none may be mounted."
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        (folder / "junk").write_bytes(bytes(1024 * (kilobytes - free)))
        yield folder
    finally: subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_no_images_and_ends_nothing(tmp_path):
    make_study(tmp_path)
    look = """
import numpy as np
from mimssl.data.image_cache import Form, stored
from mimssl.data.sources import open_dataset
data = open_dataset("stripes", "train")
found = stored(data, Form())
assert found.folder is None
for i in range(len(data)):
    assert found.pixels(i).numpy().tobytes() == np.asarray(data[i]["image"]).tobytes()
"""
    with small_disk(tmp_path / "full") as full, Forks(tmp_path) as run:
        script = (SETTING.format(name="MIMSSL_OUTPUTS", value=full)
                  + SETTING.format(name="MIMSSL_IMAGE_CACHE", value=1))
        status, text = run(script + look)
        assert status == 0 and text.count("\n") == 1, text
        assert "cannot be kept" in text and "the disk is full" in text, text
        assert not list(full.glob("local/images/*")) and not list(full.glob("local/images/.*.tmp"))
