"What `make gpu` runs, as far as a CPU can, on small networks."
import subprocess, sys
from support import ROOT
from support.tiny import environment


def test_the_parts_for_an_accelerator_run_on_a_cpu():
    done = subprocess.run([sys.executable, "tools/gpu.py", "--quick", "--device", "cpu"], cwd=ROOT,
                          env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line[:1].strip()}
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {name for name, line in lines.items() if line.startswith("ok")}
    assert ran == {"speed", "parity", "bf16", "resume", "workers", "compiled", "group", "training"}
    assert "skipped" in lines["costs"] and "accelerator" in lines["costs"]
