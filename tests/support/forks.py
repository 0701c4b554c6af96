"Pieces of Python in processes of their own, forked from a parent that imported the library once."
import json, os, signal, subprocess, sys, threading, time, traceback
from pathlib import Path
if __package__: from .tiny import environment

COMMAND = "import sys; from mimssl.cli import main; sys.exit(main({argv!r}))"


class Job:
    "A forked child: its `pid`, whether it has ended, and what it printed."
    def __init__(self, forks, pid: int, out: Path, err: Path):
        self.forks, self.pid, self.out, self.err, self.returncode = forks, pid, out, err, None

    def poll(self) -> int | None:
        "The exit status (negative for a signal), or None while it runs."
        if self.returncode is None: self.returncode = self.forks.ask(poll=self.pid)
        return self.returncode

    def send_signal(self, number: int):
        # nobody else reaps it, so the number is still its own
        if self.poll() is None: os.kill(self.pid, number)

    def kill(self): self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300.) -> tuple[str, str]:
        "What it printed, once it has ended."
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"still running after {timeout} s: {self.err.read_text()}")
            time.sleep(.01)
        return tuple(f.read_text(errors="replace") for f in (self.out, self.err))


class Forks:
    """A context manager; a call runs `code` in a new child, and gives its exit status (negative for
    a signal) and what it printed. `start` does not wait. `env` is that of the parent.
    """
    def __init__(self, home: Path, **env):
        self.home, self.jobs, self.lock = Path(home), [], threading.Lock()
        self.parent = subprocess.Popen([sys.executable, __file__], cwd=home,
                                       env=environment(**env), text=True, encoding="utf-8",
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self): return self

    def __exit__(self, *_):
        for job in self.jobs: job.kill()
        self.parent.stdin.close()
        self.parent.stdout.close()
        self.parent.wait(60)

    def ask(self, **request):
        "What the parent answers."
        with self.lock:
            self.parent.stdin.write(json.dumps(request) + "\n")
            self.parent.stdin.flush()
            return json.loads(self.parent.stdout.readline())

    def __call__(self, code: str) -> tuple[int, str]: return tuple(self.ask(run=code))

    def start(self, code: str, **env) -> Job:
        "A child that runs `code` with more environment variables, beside others."
        files = [self.home.parent / f".{self.home.name}-{len(self.jobs)}.{kind}"
                 for kind in ("out", "err")]
        pid = self.ask(start=code, env=env, files=list(map(str, files)))
        self.jobs.append(Job(self, pid, *files))
        return self.jobs[-1]

    def command(self, *argv, before: str = "", **env) -> Job:
        "`start` of `python -m mimssl` with these arguments, after the code `before`."
        return self.start(f"{before}\n{COMMAND.format(argv=list(map(str, argv)))}", **env)


def child(code: str, out: int, err: int):
    "Run `code` with its output in two file descriptors, and end the process."
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        exec(code, {"__name__": "__main__"})
        status = 0
    except SystemExit as e: status = int(e.code or 0)
    except KeyboardInterrupt:           # as the interpreter ends
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(code: str) -> tuple[int, str]:
    "Exit status and output of a child."
    read, write = os.pipe()
    if not (pid := os.fork()): child(code, write, write)
    os.close(write)
    with open(read, errors="replace") as f: text = f.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def start(code: str, env: dict, files: list[str]) -> int:
    "The number of a child that runs by itself."
    out, err = (os.open(f, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666) for f in files)
    if not (pid := os.fork()):
        os.environ.update(env)
        child(code, out, err)
    for fd in (out, err): os.close(fd)
    return pid


def poll(pid: int) -> int | None:
    "The exit status of a child, or None while it runs."
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main():
    import mimssl.cli, mimssl.data.scenes, mimssl.training.loop   # noqa: F401
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request: answer = run(request["run"])
        elif "start" in request: answer = start(request["start"], request["env"], request["files"])
        else: answer = poll(request["poll"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__": main()
