"Loader workers that refuse, die, hang or get signals: one sentence each, in a process of its own."
import subprocess, sys
import pytest

HEAD = """
import os, signal, time, torch
from torch.utils.data import DataLoader, Dataset
from mimssl.data.settings import BadInput
from mimssl.data.workers import from_workers, loader_options

class Faulty(Dataset):
    def __init__(self, fault): self.fault = fault
    def __len__(self): return 8
    def __getitem__(self, i):
        if i == 5: self.fault()
        return i * i

def refuse(): raise BadInput("5.png: cannot be read as an image; remove it.")
def die(): os.kill(os.getpid(), signal.SIGKILL)
def hang(): time.sleep(60)
def broken(): raise KeyError("five")

def signalled():
    for number in (signal.SIGINT, signal.SIGTERM): os.kill(os.getpid(), number)

def heard(fault, workers, **options):
    try: return list(from_workers(
        DataLoader(Faulty(fault), 2, **(loader_options(workers) | options))))
    except (BadInput, KeyError) as e: return f"{type(e).__name__}: {e}"
"""
CASES = {
    "refuse, 0": ("BadInput: 5.png: cannot be read as an image; remove it.",),
    "refuse, 1": ("BadInput: 5.png: cannot be read as an image; remove it.",),
    "refuse, 2": ("BadInput: 5.png: cannot be read as an image; remove it.",),
    "die, 1": ("BadInput: ", "was killed"),
    "hang, 1, timeout=2": ("BadInput: ", "no worker delivered"),
    "broken, 1": ("KeyError: ", "five"),
    "signalled, 2": ("tensor([0, 1])", "tensor([36, 49])"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_worker_says(case):
    done = subprocess.run([sys.executable, "-c", f"{HEAD}\nprint(heard({case}))"],
                          capture_output=True, text=True, timeout=120)
    for text in CASES[case]: assert text in done.stdout, done.stdout + done.stderr[-2000:]
