"A run that is killed with -9, at whatever moment, ends with the same bits as one that is not."
import signal
from tiny import make_study, python

TRAIN = ("import sys; from mimssl.cli import main; sys.exit(main('pretrain --recipe mae --out "
         "{out}'.split()))")

# before any checkpoint is written; while the second one is written, its temporary file cut in half;
# between two checkpoints
AT_STEP = """
import os, signal
from mimssl.training.loop import Run
advance = Run.advance
def killed(self, batch_of):
    if self.step == {step}: os.kill(os.getpid(), signal.SIGKILL)
    return advance(self, batch_of)
Run.advance = killed
"""
WHILE_WRITING = """
import os, signal
import mimssl.training.checkpoints as checkpoints
writes = []
def killed(path, sync=checkpoints.sync):
    writes.append(path)
    if [p.name for p in writes].count("rolling.pt.tmp") == 2:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
checkpoints.sync = killed
"""


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    make_study(tmp_path)
    whole = python(tmp_path, TRAIN.format(out="whole"))
    text = whole.communicate()[0]
    assert whole.returncode == 0, text
    rolling = lambda: list(tmp_path.glob("outputs/local/checkpoints/*/rolling.pt"))
    assert not rolling(), "a finished run leaves no rolling checkpoint"
    for kill, left in ((AT_STEP.format(step=3), 0), (WHILE_WRITING, 1),
                       (AT_STEP.format(step=11), 1)):
        run = python(tmp_path, kill + TRAIN.format(out="killed"))
        text = run.communicate()[0]
        assert run.returncode == -signal.SIGKILL, text
        assert len(rolling()) == left
    last = python(tmp_path, TRAIN.format(out="killed"))
    text = last.communicate()[0]
    assert last.returncode == 0, text
    for name in ("encoder.safetensors", "method.safetensors", "log.jsonl", "recipe.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (
            tmp_path / "whole" / name).read_bytes(), name
