"""What may happen to a run: kills and signals at random moments, a second start, a full disk, cut
files, disks that nodes do not share. MIMSSL_KILLS=100 kills more often; the seed is printed.
"""
import json, os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest, yaml
from mimssl.methods.method import find_method, method_names
from support.tiny import ENCODER, MAE, environment, make_study, ranks

KILLS = int(os.environ.get("MIMSSL_KILLS", "3"))
SEED = int(os.environ.get("MIMSSL_SEED", time.time_ns() % 10_000))
FILES = ("encoder.safetensors", "method.safetensors", "log.jsonl", "recipe.json")


def start(home: Path, *argv, **env) -> subprocess.Popen:
    "`python -m mimssl` with these arguments in `home`."
    return subprocess.Popen([sys.executable, "-m", "mimssl", *argv], cwd=home, text=True,
                            env=environment(**env), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def heard(job: subprocess.Popen) -> tuple[int, str]:
    "Exit code and what was said on stderr."
    err = job.communicate(timeout=300)[1]
    return job.returncode, "\n".join(x for x in err.splitlines() if "Warning" not in x)


def wait_for(found, job: subprocess.Popen, seconds: float = 120.):
    "Until `found()` is true or the job has ended."
    end = time.monotonic() + seconds
    while not found() and job.poll() is None and time.monotonic() < end: time.sleep(.01)


def same(home: Path, a: str, b: str):
    for name in FILES: assert (home / a / name).read_bytes() == (home / b / name).read_bytes(), name


def test_kills_and_signals_change_no_byte(tmp_path):
    rng = random.Random(SEED)
    print(f"seed {SEED}: MIMSSL_SEED={SEED} repeats this")
    methods = rng.sample(method_names(), min(KILLS, len(method_names())))
    tiny = {m: next(iter(getattr(find_method(m), "tiny", {"": MAE}).values())) for m in methods}
    make_study(tmp_path, **{m: dict(method=m, options=tiny[m], encoder=ENCODER) for m in methods})
    for method in methods:
        begin = time.monotonic()
        job = start(tmp_path, "pretrain", "--recipe", method, "--out", f"whole/{method}")
        assert heard(job)[0] == 0
        whole = time.monotonic() - begin
        for number in rng.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT),
                                  k=-(-KILLS // len(methods))):
            workers = str(rng.choice((0, 2)))
            job = start(tmp_path, "pretrain", "--recipe", method, "--out", f"cut/{method}",
                        MIMSSL_WORKERS=workers)
            delay = rng.uniform(.3, 1.) * whole
            wait_for(lambda: False, job, delay)
            job.send_signal(number)
            code, text = heard(job)
            told = f"{method}, {signal.Signals(number).name} after {delay:.1f} s, {workers} workers"
            # a process that was still importing, or already done, has nothing to say
            assert code in (0, -number, 128 + number), f"{told}: {code} {text}"
            # in the middle of its steps it names the recipe; before, there is nothing to continue
            if code == 128 + number:
                assert "\n" not in text, told + text
                assert method in text or text in ("interrupted.",
                                                  "stopped by SIGTERM."), told + text
        assert heard(start(tmp_path, "pretrain", "--recipe", method, "--out",
                           f"cut/{method}"))[0] == 0
        same(tmp_path, f"whole/{method}", f"cut/{method}")
    assert (not list(tmp_path.rglob("*.tmp"))
            and not list(tmp_path.glob("outputs/local/checkpoints/*")))


SLOW = ("import time; from mimssl.training.loop import Run; take = Run.take\n"
        "def slow(self, b): take(self, b); time.sleep(.4)\n"
        "Run.take = slow\nimport sys; from mimssl.cli import main; sys.exit(main(sys.argv[1:]))")


def slow(home: Path, *argv, **env) -> subprocess.Popen:
    "`start` with steps of 0.4 s and more."
    return subprocess.Popen([sys.executable, "-c", SLOW, *argv], cwd=home, text=True,
                            env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_signals_save_and_a_second_run_is_refused(tmp_path):
    make_study(tmp_path)
    rolling = lambda: list(tmp_path.glob("outputs/local/checkpoints/*/rolling.pt"))
    long = ("pretrain", "--recipe", "mae", "--set", "epochs=400", "--out")
    first = slow(tmp_path, *long, "run")
    wait_for(lambda: list(tmp_path.glob("outputs/local/checkpoints/*/run.json")), first)
    code, text = heard(start(tmp_path, *long, "elsewhere"))     # whatever folder it writes
    assert code == 1 and f"process {first.pid} on" in text and "is at it already" in text, text
    first.send_signal(signal.SIGTERM)
    code, text = heard(first)
    assert code == 143 and "was stopped by SIGTERM after step" in text and "saved" in text, text
    assert len(rolling()) == 1
    changed = start(tmp_path, "pretrain", "--recipe", "mae", "--out", "run", "--set", "epochs=1")
    out, err = changed.communicate(timeout=300)
    assert changed.returncode == 0 and "an earlier version of this recipe" in out, out + err
    assert not rolling(), "a changed recipe leaves no orphans"


def test_a_finished_run_whose_files_were_cut_is_noticed(tmp_path):
    make_study(tmp_path)
    assert heard(start(tmp_path, "pretrain", "--recipe", "mae", "--out", "run", "--set",
                       "epochs=1"))[0] == 0
    weights = tmp_path / "run/encoder.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\1")
    code, text = heard(start(tmp_path, "evaluate", "--model", str(weights), "--suite", "knn",
                             "--dataset", "stripes"))
    assert code == 1 and "is damaged, not the file that recipe.json" in text, text
    again = start(tmp_path, "pretrain", "--recipe", "mae", "--out", "run", "--set", "epochs=1")
    out = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and "cut, changed or missing" in out
    assert weights.read_bytes() == whole


@pytest.mark.parametrize("argv, sentence", [
    (["--set", "epochs=1", "--recipe", "../../x"], "becomes the name of a folder"),
    (["--recipe", "mae", "--out", "/proc/run"], "No such file"),
    (["--recipe", "mae", "--params", "bad.yaml"], "bad.yaml: cannot be read"),
    (["--recipe", "mae", "--params", "date.yaml"], "a date; quote it"),
    (["--recipe", "mae", "--params", "latin.yaml"], "latin.yaml: is not text in UTF-8")])
def test_one_sentence(tmp_path, argv, sentence):
    make_study(tmp_path)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["recipes"]["../../x"] = params["recipes"]["mae"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "bad.yaml").write_text("recipes: [")
    (tmp_path / "date.yaml").write_text("recipes: {mae: {epochs: 2026-01-01}}")
    (tmp_path / "latin.yaml").write_bytes("recipes: {é: 1}".encode("latin-1"))
    code, text = heard(start(tmp_path, "pretrain", *argv, LC_ALL="C", PYTHONUTF8="0",
                             PYTHONCOERCECLOCALE="0"))
    assert code == 1 and text.startswith("error: ") and text.count("\n") == 0, text
    assert sentence in text, text


def test_two_generators_of_scenes(tmp_path):
    code = [sys.executable, "-m", "mimssl.data.scenes", str(tmp_path / "scenes"), "--scale", "0.01"]
    jobs = [subprocess.Popen(code, env=environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [job.wait(300) for job in jobs] == [0, 0]
    record = json.loads((tmp_path / "scenes/version.json").read_text())
    assert record["files"] == sum(p.is_file() for p in (tmp_path / "scenes").rglob("*")) - 1
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]


def started(home: Path, count: int, outputs=None, **more) -> list[subprocess.Popen]:
    "A training of the recipe mae on `count` processes."
    return [slow(home, "pretrain", "--recipe", "mae", "--out", "run", **one,
                 **({"MIMSSL_OUTPUTS": outputs[r]} if outputs else {}), **more)
            for r, one in enumerate(ranks(count))]


def test_ranks_with_disks_of_their_own_and_a_lost_rank(tmp_path):
    make_study(tmp_path)
    places = lambda node: list(tmp_path.glob(f"{node}/local/checkpoints/*/rolling.pt"))
    jobs = started(tmp_path, 2, ("node0", "node1"))
    wait_for(lambda: places("node0"), jobs[0])
    jobs[1].kill()                                        # a rank dies
    begin = time.monotonic()
    code, text = heard(jobs[0])
    assert code == 1 and "process 0 of 2: another process ended" in text, text
    assert time.monotonic() - begin < 60 and text.count("\n") == 0
    heard(jobs[1])
    assert places("node0") and not places("node1")
    for code, text in map(heard, started(tmp_path, 2, ("node0", "node1"))):
        assert code == 1, text
        assert not text or "the processes do not agree: the step to continue from is" in text
    for code, text in map(heard, started(tmp_path, 2, ("node0", "node0"))): assert code == 0, text
