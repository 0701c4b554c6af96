"End to end: a reduced smoke study through DVC in a scratch clone, run twice, killed, changed."
import hashlib, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from support import ROOT

SMALL = [
    "study.datasets=[scenes]",
    "study.recipes=[mae]",
    "study.evaluated=[mae]",
    "study.detectors=[]",
    "study.seeds=[0]",
    "study.suite={knn: {ks: [10]}, linear: {epochs: 3}}",
    *(
        f"~study.suite.{name}"
        for name in (
            "lowshot", "clustering", "prompt_segmentation", "unsupervised_segmentation", "semseg",
            "davis"
        )
    ),
    "study.suite.similarity.size=32",
    "study.encoder={embed_dim: 48, depth: 2, num_heads: 2, patch_size: 8, image_size: 32}",
    "recipes.mae.epochs=24",
    "recipes.mae.batch_size=32",
    "recipes.mae.save_every=1",
    "recipes.mae.optimiser.warmup_epochs=2",
    "recipes.mae_ct_head.epochs=1",
    "recipes.mae_ct.epochs=1",
    "sweeps.collapse.shared.epochs=1",
    "sweeps.collapse.shared.optimiser.warmup_epochs=0",
    ("sweeps.collapse.variants=[{label: momentum}, "
     "{label: joint, options: {target: joint, loss: mse}}]"),
]
WEIGHTS = "outputs/pretrain/mae-s0/encoder.safetensors"


class Clone:
    """A clone of the tracked files, committed, with a tenth of the generated data and a reduced
    study.
    """
    def __init__(self, home: Path):
        self.home = home
        self.env = {k: v for k, v in os.environ.items()
                    if not k.startswith(("MIMSSL_", "GIT_", "DVC_"))} | {
                        "PYTHONPATH": str(home),
                        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                        "MIMSSL_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "GIT_AUTHOR_NAME": "t",
                        "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t",
                        "GIT_COMMITTER_EMAIL": "t@example.org"}
        files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                               capture_output=True, text=True, check=True).stdout.splitlines()
        for name in files:
            if (name.startswith("outputs/") or name in ("dvc.lock", "data.dvc")
                or not (ROOT / name).is_file()):
                continue
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, home / name)
        self("git", "init", "-q")
        self("python", "-m", "mimssl.data.scenes", "--scale", ".1")
        self("dvc", "add", "-q", "data")
        self("python", "-c",
             f"from mimssl.data.study import compose; compose('smoke', overrides={SMALL})")
        self.commit()

    def __call__(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(command, cwd=self.home, env=self.env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        assert fails or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}"
        return done.stdout

    def commit(self):
        self("git", "add", "-A")
        self("git", "commit", "-q", "--allow-empty", "-m", "state")

    def ran(self, output: str) -> set[str]:
        "Names of the stages that DVC ran."
        return {line.split("'")[1]
                for line in output.splitlines() if line.startswith("Running stage")}

    def sha(self, name: str) -> str:
        return hashlib.sha256((self.home / name).read_bytes()).hexdigest()

    def small_files(self) -> dict[str, str]:
        "Tracked results -> their hashes."
        return {n: self.sha(n) for n in self("git", "ls-files", "outputs", "dvc.lock").splitlines()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    made = Clone(tmp_path_factory.mktemp("clone"))
    made.first = made("python", "-m", "mimssl.training.jobs", "2")
    made.commit()
    return made


def test_the_whole_study_runs(clone):
    logs = {p.stem: p.read_text() for p in (clone.home / "outputs/local/jobs").glob("*.log")}
    assert set().union(*map(clone.ran, logs.values())) == {
        "prepare@scenes", "pretrain@mae-0", "mae_ct_head@0", "mae_ct@0", "baselines@pixels",
        "baselines@untrained", "evaluate@mae-0", "ablate@collapse", "figures"}
    assert f"[{len(logs)}/{len(logs)}] figures" in clone.first
    assert "step/s" in logs["pretrain@mae-0"], "no progress of the training was shown"
    table = (clone.home / "outputs/figures/results.txt").read_text()
    assert "linear" in table.lower() and "untrained" in table.lower()
    executed = sorted(p.name for p in (clone.home / "outputs").glob("*/**/*.ipynb")
                      if "local" not in p.parts)
    assert (executed == ["ablate.ipynb"] + ["evaluate.ipynb"] * 3
            + ["figures.ipynb", "prepare.ipynb"] + ["pretrain.ipynb"] * 3)
    assert (clone.home / "outputs/figures/sweep-collapse.png").is_file()
    pretrain = json.loads((clone.home / "outputs/pretrain/mae-s0/pretrain.ipynb").read_text())
    assert sum("image/png" in o.get("data", {}) for c in pretrain["cells"]
               for o in c.get("outputs", [])) == 2
    record = json.loads((
        clone.home / "outputs/local/provenance/pretrain/mae-s0/pretrain.json").read_text())
    assert (len(record["commit"]) == 40 and record["parameters"] == {"recipe": "mae", "seed": 0}
            and record["seconds"] > 0)


def test_a_second_run_does_nothing(clone):
    begin = time.monotonic()
    assert not clone.ran(clone("dvc", "repro"))
    assert time.monotonic() - begin < 60
    assert "up to date" in clone("dvc", "status")
    assert clone("git", "status", "--porcelain") == ""
    assert WEIGHTS not in clone("git", "ls-files", "outputs")
    shown = clone("dvc", "metrics", "show")
    assert "knn.top1" in shown and "mae-s0" in shown
    assert "curves.csv" in clone("dvc", "plots", "show", "--json")
    assert "pretrain" in clone("dvc", "dag")


def test_running_a_stage_again_gives_the_same_bytes(clone):
    before = clone.small_files()
    shutil.rmtree(clone.home / "outputs/local")
    stages = ("prepare@scenes", "baselines@untrained", "evaluate@mae-0", "figures")
    assert clone.ran(clone("dvc", "repro", "--force", "--no-run-cache", "--single-item",
                           *stages)) == set(stages)
    after = clone.small_files()
    assert not [n for n in before if before[n] != after[n]]
    assert clone("git", "status", "--porcelain") == ""


def test_a_killed_run_continues_and_ends_with_the_same_bits(clone):
    weights = clone.sha(WEIGHTS)
    # else DVC would fetch the result of the first run
    shutil.rmtree(clone.home / ".dvc/cache/runs", ignore_errors=True)
    run = subprocess.Popen(["dvc", "repro", "--force", "--single-item", "pretrain@mae-0"],
                           cwd=clone.home, env=clone.env, start_new_session=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    waiting_until = time.monotonic() + 120
    while not list((clone.home / "outputs/local/checkpoints").glob("*/rolling.pt")):
        assert run.poll() is None and time.monotonic() < waiting_until, (
            "the run ended, or saved nothing, before it could be killed")
        time.sleep(.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(2.5)  # the kernel notices within a second that its parent is gone
    assert not (clone.home / WEIGHTS).exists()
    said = clone("dvc", "repro")
    assert clone.ran(said) == {"pretrain@mae-0"}
    times = [json.loads(line)
             for line in (clone.home / "outputs/local/times.jsonl").read_text().splitlines()]
    assert times[-1]["from_step"] > 0, "it started again from the beginning"
    assert clone.sha(WEIGHTS) == weights
    assert clone("git", "status", "--porcelain") == ""


def changed_stages(clone) -> set[str]:
    "Stages that `dvc status` names as changed themselves."
    return {line.rstrip(":") for line in clone("dvc", "status").splitlines() if line
            and not line[0].isspace() and line.endswith(":")}


def test_only_what_changed_is_out_of_date(clone):
    params = clone.home / "params.yaml"
    before = params.read_text()
    try:
        params.write_text(before.replace("\nrecipes:\n",
                                         "\nrecipes:\n  another:\n    method: mae\n"))
        assert "up to date" in clone(
            "dvc", "status"), "a recipe that is not in the study changed something"
        params.write_text(before.replace("epochs: 24", "epochs: 1").replace(
            "warmup_epochs: 2", "warmup_epochs: 1"))
        # the latter three start from it, or may: a sweep names no more than its own recipe
        assert changed_stages(clone) == {"pretrain@mae-0", "mae_ct_head@0", "mae_ct@0",
                                         "ablate@collapse"}
        assert clone.ran(clone("dvc", "repro", "evaluate@mae-0",
                               "baselines@pixels")) == {"pretrain@mae-0", "evaluate@mae-0"}
    finally: params.write_text(before)


@pytest.mark.parametrize(
    "module, stages",
    [
        ("mimssl/training/loop.py", {"pretrain@mae-0"}),
        ("mimssl/report/tables.py", {"figures"}),
        ("mimssl/evaluation/knn.py", {"evaluate@mae-0", "baselines@pixels", "baselines@untrained"}),
    ],
)
def test_changed_code_is_noticed(clone, module, stages):
    clone("git", "checkout", "-q", "params.yaml", "dvc.lock", "outputs")
    path = clone.home / module
    before = path.read_text()
    try:
        path.write_text(before + "\n# changed\n")
        assert stages <= changed_stages(clone)
        assert not {"prepare@scenes"} & changed_stages(clone)
    finally: path.write_text(before)


def test_a_failing_notebook_says_why_and_leaves_nothing(clone):
    clone("git", "checkout", "-q", "params.yaml", "dvc.lock", "outputs")
    params = clone.home / "params.yaml"
    before = params.read_text()
    try:
        params.write_text(before.replace("mask_ratio: 0.75", "mask_ratio: 1.2"))
        said = clone("dvc", "repro", "pretrain@mae-0", fails=True)
        assert "error: " in said and "mask_ratio is 1.2" in said and "Traceback" not in said
        assert not (clone.home / "outputs/pretrain/mae-s0/pretrain.ipynb").exists()
    finally: params.write_text(before)


def test_a_profile_through_dvc_experiments(clone):
    clone("git", "checkout", "-q", "params.yaml", "dvc.lock", "outputs")
    said = clone("dvc", "exp", "run", "--dry", "-S", "profile=bench", fails=True)
    assert "prepare@imagenette128" in said and "Traceback" not in said, said[-2000:]
