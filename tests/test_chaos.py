"""What may happen to a run: kills and signals at random moments, a second start, a full disk, cut
files, disks that nodes do not share. MIMSSL_KILLS=100 kills more often; the seed is printed.
"""
import json, os, signal, stat, time
from pathlib import Path
import pytest, yaml
from support.forks import Forks, Job
from support.kills import campaign, heard, summary
from support.tiny import make_study, ranks
from test_data_path import small_disk

KILLS = int(os.environ.get("MIMSSL_KILLS", "3"))
SEED = int(os.environ.get("MIMSSL_SEED", time.time_ns() % 10_000))
FILES = ("encoder.safetensors", "method.safetensors", "log.jsonl", "recipe.json")


def wait_for(found, job: Job, seconds: float = 120.):
    "Until `found()` is true or the job has ended."
    end = time.monotonic() + seconds
    while not found() and job.poll() is None and time.monotonic() < end: time.sleep(.01)


def test_kills_and_signals_change_no_byte(tmp_path):
    print(f"seed {SEED}: MIMSSL_SEED={SEED} repeats this")
    home = tmp_path / "study"
    home.mkdir()
    found = campaign(home, KILLS, SEED)
    assert len(found) == KILLS and not any(value for _, value in found), summary(found, SEED)


SLOW = """
import time
from mimssl.training.loop import Run
take = Run.take
def slow(self, batch_of): take(self, batch_of); time.sleep(.4)
Run.take = slow
"""   # steps of 0.4 s and more


def test_signals_save_and_a_second_run_is_refused(tmp_path):
    make_study(tmp_path)
    rolling = lambda: list(tmp_path.glob("outputs/local/checkpoints/*/rolling.pt"))
    long = ("pretrain", "--recipe", "mae", "--set", "epochs=400", "--out")
    with Forks(tmp_path) as forks:
        first = forks.command(*long, "run", before=SLOW)
        wait_for(lambda: list(tmp_path.glob("outputs/local/checkpoints/*/run.json")), first)
        code, text = heard(forks.command(*long, "elsewhere"))     # whatever folder it writes
        assert code == 1 and f"process {first.pid} on" in text and "is at it already" in text, text
        first.send_signal(signal.SIGTERM)
        code, text = heard(first)
        assert code == 143 and "was stopped by SIGTERM after step" in text, text
        assert "saved" in text, text
        assert len(rolling()) == 1
        changed = forks.command("pretrain", "--recipe", "mae", "--out", "run", "--set", "epochs=1")
        out, err = changed.communicate()
        assert changed.returncode == 0 and "an earlier version of this recipe" in out, out + err
    assert not rolling(), "a changed recipe leaves no orphans"


def test_a_finished_run_whose_files_were_cut_is_noticed(tmp_path):
    make_study(tmp_path)
    train = ("pretrain", "--recipe", "mae", "--out", "run", "--set", "epochs=1")
    with Forks(tmp_path) as forks:
        assert heard(forks.command(*train, before="import os; os.umask(0o022)"))[0] == 0
        weights = tmp_path / "run/encoder.safetensors"
        for name in FILES:     # readable by whom the umask allows
            assert stat.S_IMODE((tmp_path / "run" / name).stat().st_mode) == 0o644, name
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-4] + b"\0\0\0\1")
        code, text = heard(forks.command("evaluate", "--model", weights, "--suite", "knn",
                                         "--dataset", "stripes"))
        assert code == 1 and "is damaged, not the file that recipe.json" in text, text
        again = forks.command(*train)
        out = again.communicate()[0]
        assert again.returncode == 0 and "cut, changed or missing" in out
        assert weights.read_bytes() == whole


@pytest.fixture(scope="module")
def latin(tmp_path_factory):
    "A study with odd parameters, and processes whose locale knows no UTF-8."
    home = make_study(tmp_path_factory.mktemp("latin"))
    params = yaml.safe_load((home / "params.yaml").read_text())
    params["recipes"]["../../x"] = params["recipes"]["mae"]
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    (home / "bad.yaml").write_text("recipes: [")
    (home / "date.yaml").write_text("recipes: {mae: {epochs: 2026-01-01}}")
    (home / "latin.yaml").write_bytes("recipes: {é: 1}".encode("latin-1"))
    with Forks(home, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") as forks: yield forks


@pytest.mark.parametrize("argv, sentence", [
    (["--set", "epochs=1", "--recipe", "../../x"], "becomes the name of a folder"),
    (["--recipe", "mae", "--out", "/proc/run"], "No such file"),
    (["--recipe", "mae", "--params", "bad.yaml"], "bad.yaml: cannot be read"),
    (["--recipe", "mae", "--params", "date.yaml"], "a date; quote it"),
    (["--recipe", "mae", "--params", "latin.yaml"], "latin.yaml: is not text in UTF-8"),
    (["--recipe", "a\nb\x1b[31mc"], "there is no recipe")])
def test_one_sentence(latin, argv, sentence):
    code, text = heard(latin.command("pretrain", *argv))
    assert code == 1 and text.startswith("error: ") and text.count("\n") == 0, text
    assert sentence in text and "\x1b" not in text, text


# no right but those that the mode of a file gives, not even for root
ORDINARY = """
import ctypes, os
if os.geteuid() == 0:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
"""
# the kernel refuses whatever would make a file longer than 2 kB
SHORT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
"""
EVALUATE = ["evaluate", "--model", "run", "--suite", "knn", "--dataset", "stripes", "--splits",
            "train,train", "--set", "knn.ks=5"]
COMMANDS = {   # name -> command with {out}, a place in the folder that cannot be written
    "pretrain": ["pretrain", "--recipe", "mae", "--set", "epochs=1", "--out", "{out}/run"],
    "evaluate": [*EVALUATE, "--out", "{out}/a.jsonl"],
    "outcomes": [*EVALUATE, "--outcomes", "{out}/outcomes"],
    "report": ["report", "records.jsonl", "--out", "{out}/table.txt"],
    "explore": ["explore", "--model", "run", "--images", "stripes/train/0/000.png", "--out",
                "{out}/page.html"],
    "shard": ["data", "shard", "stripes", "--splits", "train", "--out", "{out}/shards"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A study with a trained run and records, and processes in it."
    home = make_study(tmp_path_factory.mktemp("trained"))
    with Forks(home) as forks:
        for argv in (["pretrain", "--recipe", "mae", "--set", "epochs=1", "--out", "run"],
                     [*COMMANDS["evaluate"][:-1], "records.jsonl"]):
            job = forks.command(*argv)
            out = job.communicate()
            assert job.returncode == 0, out
        yield forks


def refused(forks: Forks, name: str, out: Path, scratch: Path, before: str = "") -> str:
    "The one sentence of a command that cannot write in `out`; it leaves nothing there."
    there = sorted(out.rglob("*"))
    job = forks.command(*(a.format(out=out) for a in COMMANDS[name]), before=before,
                        MIMSSL_OUTPUTS=str(scratch))
    code, text = heard(job)
    # a command that goes on without its image cache says so, once
    text = "\n".join(x for x in text.splitlines() if not x.startswith("images are decoded each"))
    assert code == 1 and text.startswith("error: ") and "\n" not in text, f"{name}: {code} {text}"
    # records are appended, so their file may be there, with none in it
    left = [p for p in out.rglob("*") if p not in there and p.is_file()
            and (p.suffix != ".jsonl" or p.stat().st_size)]
    assert not left, f"{name} left {left}"
    return text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_folder(trained, tmp_path, name):
    out = tmp_path / "closed"
    out.mkdir()
    out.chmod(0o555)
    told = refused(trained, name, out, tmp_path / "outputs", ORDINARY)
    assert "closed" in told and "ermission denied" in told, told


@pytest.mark.parametrize("name", ["pretrain", "evaluate", "explore"])
def test_read_only_outputs(trained, tmp_path, name):
    "Checked images, checkpoints and features lie in the outputs, wherever results go."
    closed = tmp_path / "outputs"
    closed.mkdir()
    closed.chmod(0o555)
    job = trained.command(*(a.format(out=tmp_path) for a in COMMANDS[name]), before=ORDINARY,
                          MIMSSL_OUTPUTS=str(closed))
    code, text = heard(job)
    if name == "explore": assert code == 0, text     # it keeps nothing there
    else: assert code == 1 and "\n" not in text and "ermission denied" in text, text


READERS = {   # what reads files of weights -> a name of one
    "mimssl.parts.formats.read_checkpoint": "a.safetensors",
    "mimssl.parts.formats.load_file": "a.pth",
    "mimssl.parts.encoder.load_encoder": "encoder.safetensors",
    "mimssl.parts.image_text.load_image_text": "image_text.safetensors",
    "mimssl.parts.heads.load_patch_head": "method.safetensors",
    "mimssl.training.checkpoints.read_weights": "method.safetensors",
    "mimssl.training.checkpoints.load_state": "rolling.pt"}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read(trained, tmp_path, reader):
    weights = tmp_path / READERS[reader]
    weights.write_bytes((trained.home / "run/encoder.safetensors").read_bytes())
    weights.chmod(0)
    module, name = reader.rsplit(".", 1)
    code, text = trained(f"{ORDINARY}\nfrom mimssl.data.settings import BadInput\n"
                         f"from {module} import {name}\n"
                         f"try: {name}({str(weights)!r})\n"
                         f"except BadInput as e: print(e)")
    assert code == 0 and "ermission denied" in text and str(weights) in text, text
    assert text.count("\n") == 1, text


def test_weights_that_may_not_be_read(trained, tmp_path):
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes((trained.home / "run/encoder.safetensors").read_bytes())
    weights.chmod(0)
    code, text = heard(trained.command("evaluate", "--model", weights, "--suite", "knn",
                                       "--dataset", "stripes", before=ORDINARY))
    assert code == 1 and "ermission denied" in text and "\n" not in text, text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(trained, tmp_path, name):
    with small_disk(tmp_path / "full", free=0) as full:
        told = refused(trained, name, full, tmp_path / "outputs")
        assert "disk is full" in told, told


@pytest.mark.parametrize("name", ["pretrain", "evaluate"])
def test_full_outputs(trained, tmp_path, name):
    with small_disk(tmp_path / "full", free=0) as full:
        told = refused(trained, name, tmp_path, full)
        assert "disk is full" in told, told
        assert not [p for p in full.rglob("*") if p.suffix == ".tmp" or p.name == "features.npy"]


@pytest.mark.parametrize("name", ["pretrain", "outcomes", "explore", "shard"])
def test_a_file_that_cannot_grow(trained, tmp_path, name):
    "What every reader can try: the kernel's own limit on the size of a file."
    (tmp_path / "out").mkdir()
    told = refused(trained, name, tmp_path / "out", tmp_path / "outputs", SHORT)
    assert "file too large" in told, told


def test_records_from_many_processes(trained, tmp_path):
    append = ("from mimssl.data.records import append_records\n"
              "for i in range(50): append_records({file!r}, [{{'at': i, 'text': 'x' * 500}}])")
    file = str(tmp_path / "all.jsonl")
    jobs = [trained.start(append.format(file=file)) for _ in range(4)]
    for job in jobs: assert heard(job) == (0, "")
    records = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert sorted(r["at"] for r in records) == sorted(4 * list(range(50)))


def test_two_generators_of_scenes(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = (f"from mimssl.data.scenes import main; main([{str(home / 'scenes')!r}, '--scale', "
            f"'0.01'])")
    with Forks(home) as forks:
        for job in [forks.start(code) for _ in range(2)]: assert heard(job)[0] == 0
    record = json.loads((home / "scenes/version.json").read_text())
    assert record["files"] == sum(p.is_file() for p in (home / "scenes").rglob("*")) - 1
    assert [p.name for p in home.iterdir()] == ["scenes"]


def started(forks: Forks, count: int, outputs=None) -> list[Job]:
    "A training of the recipe mae on `count` processes."
    return [forks.command("pretrain", "--recipe", "mae", "--out", "run", before=SLOW, **one,
                          **({"MIMSSL_OUTPUTS": outputs[r]} if outputs else {}))
            for r, one in enumerate(ranks(count))]


def test_ranks_with_disks_of_their_own_and_a_lost_rank(tmp_path):
    make_study(tmp_path)
    places = lambda node: list(tmp_path.glob(f"{node}/local/checkpoints/*/rolling.pt"))
    with Forks(tmp_path) as forks:
        jobs = started(forks, 2, ("node0", "node1"))
        wait_for(lambda: places("node0"), jobs[0])
        jobs[1].kill()                                        # a rank dies
        begin = time.monotonic()
        code, text = heard(jobs[0])
        assert code == 1 and "process 0 of 2: another process ended" in text, text
        assert time.monotonic() - begin < 60 and text.count("\n") == 0
        heard(jobs[1])
        assert places("node0") and not places("node1")
        for code, text in map(heard, started(forks, 2, ("node0", "node1"))):
            assert code == 1, text
            assert not text or "the processes do not agree: the step to continue from is" in text
        for code, text in map(heard, started(forks, 2, ("node0", "node0"))): assert code == 0, text
