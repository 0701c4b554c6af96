"Pieces of Python in processes of their own, forked from a parent that imported the library once."
import json, os, subprocess, sys, traceback
from pathlib import Path
if __package__: from .tiny import environment


class Forks:
    """A context manager; a call runs `code` in a new child, and gives its exit status (negative for
    a signal) and what it printed.
    """
    def __init__(self, home: Path):
        self.parent = subprocess.Popen([sys.executable, __file__], cwd=home, env=environment(),
                                       text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self): return self

    def __exit__(self, *_):
        self.parent.stdin.close()
        self.parent.stdout.close()
        self.parent.wait(60)

    def __call__(self, code: str) -> tuple[int, str]:
        self.parent.stdin.write(json.dumps(code) + "\n")
        self.parent.stdin.flush()
        return tuple(json.loads(self.parent.stdout.readline()))


def child(code: str, printed: int):
    "Run `code` with its output in the file descriptor `printed`, and end the process."
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    try:
        exec(code, {"__name__": "__main__"})
        status = 0
    except SystemExit as e: status = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    import mimssl.cli, mimssl.training.loop   # noqa: F401
    for line in sys.stdin:
        read, write = os.pipe()
        if not (pid := os.fork()): child(json.loads(line), write)
        os.close(write)
        with open(read, errors="replace") as f: text = f.read()
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text]), flush=True)


if __name__ == "__main__": main()
