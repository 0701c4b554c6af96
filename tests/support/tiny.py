"A tiny study in a folder of its own: pictures of stripes, captions, settings and recipes."
import json, os, shutil, socket, subprocess, sys
from pathlib import Path
import numpy as np, yaml
from PIL import Image

ENCODER = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 32}
MAE = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}


def make_study(home: Path, images: int = 32, size: int = 40, **recipes) -> Path:
    """Write data, settings.ini and params.yaml into `home`; `recipes` are laid over a recipe 'mae'
    of 4 epochs with 4 steps.
    """
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    for i in range(images):
        rng, angle = np.random.default_rng(i), i % 4 * np.pi / 4
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(.3, .9)
                      + rng.uniform(0, 6))
        file = home / f"stripes/train/{i % 4}/{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((
            128 + 100 * wave[..., None] * rng.uniform(-1, 1, 3)).astype(np.uint8)).save(file)
        copy = home / f"captioned/images/{i:03}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    told = [{"file": f"{i:03}.png", "split": "train",
             "captions": [f"stripes number {i} of kind {i % 4}", f"{i} stripes"]}
            for i in range(images)]
    (home / "captioned/captions.json").write_text(json.dumps(told))
    (home / "settings.ini").write_text("[roots]\nstripes = stripes\nflickr30k = captioned\n"
                                       "[machine]\ndevice = cpu\n")
    mae = {"method": "mae", "dataset": "stripes", "encoder": ENCODER, "options": MAE, "epochs": 4,
           "batch_size": 8, "optimiser": {"lr": 1e-3, "warmup_epochs": 1}}
    (home / "params.yaml").write_text(yaml.safe_dump({"recipes": {"mae": mae} | {
        name: mae | r for name, r in recipes.items()}}))
    return home


def environment(**more) -> dict:
    "The environment of a subprocess: one thread, no settings from outside."
    outside = {"MIMSSL_DATA", "MIMSSL_OUTPUTS", "MIMSSL_DEVICE", "MIMSSL_WORKERS"}
    return {k: v
            for k, v in os.environ.items() if k not in outside} | {"OMP_NUM_THREADS": "1"} | more


def start(home: Path, *argv, **env) -> subprocess.Popen:
    "Start Python on a script of this folder and its arguments, in the folder `home`."
    script, *rest = argv
    command = [sys.executable, Path(__file__).with_name(script), *map(str, rest)]
    return subprocess.Popen(command, cwd=home, env=environment(**env), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ranks(count: int) -> list[dict]:
    "What torchrun tells each of `count` processes of this machine, as environment variables."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    return [dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
                 MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for r in range(count)]


def wait_for(jobs: list[subprocess.Popen], seconds: float = 600):
    "Wait until all have ended well; none is left running."
    try:
        for job in jobs:
            text = job.communicate(timeout=seconds)[0]
            assert job.returncode == 0, text
    finally:
        for job in jobs: job.kill()
