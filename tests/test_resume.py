"A run that is killed with -9, at whatever moment, ends with the same bits as one that is not."
import signal
from support.forks import Forks
from support.tiny import make_study

TRAIN = ("import sys; from mimssl.cli import main; sys.exit(main('pretrain --recipe mae --out "
         "{out}'.split()))")

# before any checkpoint is written; while the second one is written, its temporary file cut in half;
# between two checkpoints
AT_STEP = """
import os, signal
from mimssl.training.loop import Run
take = Run.take
def killed(self, batch_of):
    if self.step == {step}: os.kill(os.getpid(), signal.SIGKILL)
    return take(self, batch_of)
Run.take = killed
"""
WHILE_WRITING = """
import os, signal
import mimssl.data.files as files
writes = []
def killed(path, sync=files.sync):
    writes.append(path)
    if sum(".rolling.pt." in p.name for p in writes) == 2:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
files.sync = killed
"""


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    make_study(tmp_path)
    rolling = lambda: list(tmp_path.glob("outputs/local/checkpoints/*/rolling.pt"))
    with Forks(tmp_path) as run:
        status, text = run(TRAIN.format(out="whole"))
        assert status == 0, text
        assert not rolling(), "a finished run leaves no rolling checkpoint"
        for kill, left in ((AT_STEP.format(step=3), 0), (WHILE_WRITING, 1),
                           (AT_STEP.format(step=11), 1)):
            status, text = run(kill + TRAIN.format(out="killed"))
            assert status == -signal.SIGKILL, text
            assert len(rolling()) == left
        status, text = run(TRAIN.format(out="killed"))
        assert status == 0, text
    for name in ("encoder.safetensors", "method.safetensors", "log.jsonl", "MODEL_CARD.md",
                 "recipe.json"):
        whole, killed = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert whole == killed, name
