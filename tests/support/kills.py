"""Kills: training runs of every method that a signal ends at a random moment, from a folder or from
shards, with cached images and without; each is continued and compared with an uninterrupted one.

    python -m tests.support.kills --count 100 --seed 0

prints every kill and, at the end, one line; the exit code is 1 if a byte differs. A moment is a
step, a file that is being written, or a time. --out adds a record of each kill to a file.
"""
import argparse, random, signal, sys, tempfile, time
from dataclasses import asdict, dataclass
from pathlib import Path
from mimssl.data.records import append_records, metric_record
from mimssl.methods.method import find_method, method_names
from .forks import Forks, Job
from .tiny import ENCODER, MAE, make_study

STEPS = 16              # of a run: 4 epochs
SOURCES = ("folder", "shards")
SHARDS = """
from pathlib import Path
from mimssl.data.shards import write_shards
from mimssl.data.sources import open_dataset
for name in ("stripes", "flickr30k"):
    write_shards(open_dataset(name, "train"), Path(f"packed_{name}").absolute(), "train", .01)
"""
# a checkpoint after every step, not after every epoch
OFTEN = """
import mimssl.training.loop as loop
for f in (loop.go, loop.train):
    f.__defaults__ = tuple(0. if d == 120. else d for d in f.__defaults__)
    assert 0. in f.__defaults__
"""
AT = {
    "step": """
import os
from mimssl.training.loop import Run
take = Run.take
def struck(self, batch_of):
    if self.step == {at}: os.kill(os.getpid(), {number})
    return take(self, batch_of)
Run.take = struck
""",
    # half of a file, or a folder, has reached the disk
    "write": """
import os
import mimssl.data.files as files
sync, writes = files.sync, []
def struck(path):
    writes.append(path)
    if len(writes) == {at}:
        if {number} == 9 and path.is_file(): os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), {number})
    sync(path)
files.sync = struck
""", "time": ""}


@dataclass(frozen=True)
class Kill:
    "How a run is ended, and what it is started with."
    method: str
    source: str      # of SOURCES
    signal: str
    moment: str      # of AT
    at: float        # the step, the number of the file, or the part of a whole run's time
    often: bool      # a checkpoint after every step
    cache: str       # of images: 'none', 'cold' (not there yet), 'warm'
    workers: int

    @property
    def number(self) -> int: return signal.Signals["SIG" + self.signal].value

    @property
    def before(self) -> str:
        "Code for the process."
        return OFTEN * self.often + AT[self.moment].format(at=self.at, number=self.number)

    @property
    def env(self) -> dict:
        cached = {"MIMSSL_IMAGE_CACHE": "0"} if self.cache == "none" else {}
        return cached | {"MIMSSL_WORKERS": str(self.workers)}

    def __str__(self) -> str:
        at = f"{self.at:.2f} of the {self.moment}" if self.moment == "time" else \
            f"{self.moment} {self.at}"
        return (f"{self.method} from {self.source}: SIG{self.signal} at {at}, "
                f"{'checkpoint each step, ' * self.often}{self.workers} workers, "
                f"image cache {self.cache}")


def draw(rng: random.Random, method: str, source: str) -> Kill:
    "A kill of a run of `method`."
    moment = rng.choice([*AT])
    at = {"step": rng.randrange(STEPS), "write": rng.randint(1, 24),
          "time": round(rng.uniform(.1, 1.), 3)}[moment]
    return Kill(method, source, rng.choice(("KILL", "TERM", "INT")), moment, at, rng.random() < .5,
                rng.choice(("none", "cold", "warm")), rng.choice((0, 1, 2)))


def dataset(method: str, source: str) -> str:
    "The data set that it learns from."
    name = "flickr30k" if find_method(method).needs_captions else "stripes"
    return name if source == "folder" else f"packed_{name}"


def heard(job: Job) -> tuple[int, str]:
    "Exit code and what was said on stderr."
    err = job.communicate()[1]
    return job.returncode, "\n".join(x for x in err.splitlines() if "Warning" not in x)


def different(a: Path, b: Path) -> int:
    "How many bytes of the files of two folders differ."
    files = {p.relative_to(f) for f in (a, b) for p in f.rglob("*") if p.is_file()}
    read = lambda f: f.read_bytes() if f.is_file() else b""
    pairs = [(read(a / name), read(b / name)) for name in files]
    return sum(abs(len(x) - len(y)) + sum(p != q for p, q in zip(x, y)) for x, y in pairs if x != y)


class Runs:
    "Runs of tiny recipes in the folder `home`: whole ones, and ones that are killed and continued."
    def __init__(self, home: Path, methods: list[str]):
        tiny = {m: next(iter(getattr(find_method(m), "tiny", {"": MAE}).values())) for m in methods}
        make_study(home, **{self.recipe(m, s): dict(method=m, options=tiny[m], encoder=ENCODER,
                                                    dataset=dataset(m, s))
                            for m in methods for s in SOURCES})
        roots = "packed_stripes = packed_stripes\npacked_flickr30k = packed_flickr30k\n"
        settings = home / "settings.ini"
        settings.write_text(settings.read_text().replace("[machine]", f"{roots}[machine]"))
        self.home, self.seconds = home, {}

    def __enter__(self):
        self.forks = Forks(self.home)
        status, text = self.forks(SHARDS)
        assert status == 0, text
        return self

    def __exit__(self, *error): self.forks.__exit__(*error)

    @staticmethod
    def recipe(method: str, source: str) -> str: return f"{method}_{source}"

    def job(self, folder: str, method: str, source: str, **more) -> Job:
        name = self.recipe(method, source)
        return self.forks.command("pretrain", "--recipe", name, "--out", f"{folder}/{name}", **more)

    def whole(self, method: str, source: str):
        "An uninterrupted run, unless there is one."
        if (method, source) in self.seconds: return
        begin = time.monotonic()
        code, text = heard(self.job("whole", method, source))
        assert code == 0, text
        self.seconds[method, source] = time.monotonic() - begin

    def strike(self, kill: Kill) -> bool:
        "Start or continue a run and end it; False if it was faster."
        if kill.cache == "cold":
            for folder in self.home.glob("outputs/local/images/*"): remove(folder)
        job = self.job("cut", kill.method, kill.source, before=kill.before, **kill.env)
        if kill.moment == "time":
            end = time.monotonic() + kill.at * self.seconds[kill.method, kill.source]
            while job.poll() is None and time.monotonic() < end: time.sleep(.01)
            job.send_signal(kill.number)
        code, text = heard(job)
        # a process that was still beginning, or already done, has nothing to say
        assert code in (0, -kill.number, 128 + kill.number), f"{kill}: {code} {text}"
        if code == 128 + kill.number: self.check_sentence(kill, text)
        return code != 0

    def check_sentence(self, kill: Kill, text: str):
        "A run in the middle of its steps names the recipe; before, there is nothing to continue."
        told = [x for x in text.splitlines() if not x.startswith("images are decoded each")]
        assert len(told) == 1, f"{kill}: {text}"
        assert (self.recipe(kill.method, kill.source) in told[0]
                or told[0] in ("interrupted.", "stopped by SIGTERM.")), f"{kill}: {text}"

    def finish(self, method: str, source: str) -> int:
        "Continue a run to its end, and count the bytes that are not those of the whole one."
        code, text = heard(self.job("cut", method, source))
        assert code == 0, text
        assert not list(self.home.rglob("*.tmp")), "a temporary file stayed"
        assert not list(self.home.glob("outputs/local/checkpoints/*")), "a checkpoint stayed"
        name = self.recipe(method, source)
        found = different(self.home / "whole" / name, self.home / "cut" / name)
        remove(self.home / "cut" / name)
        return found


def remove(folder: Path):
    "A folder and all in it."
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def campaign(home: Path, count: int, seed: int, methods: list[str] | None = None,
             told=lambda kill, value: None) -> list[tuple[Kill, int]]:
    "`count` kills, with how many bytes of their run differed at its end; each is `told`."
    methods, found, turn = methods or method_names(), [], 0
    methods = random.Random(seed).sample(methods, min(count, len(methods)))
    with Runs(home, methods) as runs:
        while len(found) < count:
            rng = random.Random(f"{seed}, {turn}")      # whatever became of the runs before
            method, source, turn = methods[turn % len(methods)], rng.choice(SOURCES), turn + 1
            runs.whole(method, source)
            kills = []
            for _ in range(min(rng.randint(1, 3), count - len(found))):
                kill = draw(rng, method, source)
                if not runs.strike(kill): break
                kills.append(kill)
            value = runs.finish(method, source)
            for kill in kills: told(kill, value)
            found += [(kill, value) for kill in kills]
    return found


def record(kill: Kill, value: int, seed: int) -> dict:
    "A kill and the bytes that differed."
    return metric_record(kill.method, kill.method, "kills", "different_bytes", value, 1, seed, "",
                         dataset(kill.method, kill.source), asdict(kill))


def summary(found: list[tuple[Kill, int]], seed: int) -> str:
    "The line at the end."
    kinds = lambda name: ", ".join(f"{sum(getattr(k, name) == x for k, _ in found)} {x}" for x in
                                   sorted({getattr(k, name) for k, _ in found}))
    return (f"seed {seed}: {len(found)} kills of {len({k.method for k, _ in found})} methods "
            f"({kinds('signal')}; {kinds('source')}; cache {kinds('cache')}; at {kinds('moment')})"
            f", {sum(value > 0 for _, value in found)} with a byte that differs")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    parser.add_argument("--out", help="file for the records")
    args = parser.parse_args(argv)
    def told(kill, value):
        print(f"{kill}: {value} bytes differ", flush=True)
        if args.out: append_records(args.out, [record(kill, value, args.seed)])
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "study"
        home.mkdir()
        found = campaign(home, args.count, args.seed, told=told)
    print(summary(found, args.seed))
    return int(any(value for _, value in found))


if __name__ == "__main__": sys.exit(main())
