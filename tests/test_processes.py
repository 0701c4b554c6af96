"""Two processes on half batches do what one does on the whole batch, for every method and its
forms: losses, monitors, gradient, weights, buffers.
"""
import json, socket
import pytest, torch
from safetensors.torch import load_file
from mimssl.methods.method import method_names, tiny_forms
from tiny import make_study, python

# a method, or a method and a word for the form -> its options for a tiny encoder
CASES = {f"{name}-{form}".strip("-"): options
         for name in method_names() for form, options in tiny_forms(name).items()}
STEPS, TOLERANCE = 3, 1e-5

# Trains every case for a few steps with plain SGD, so that weights follow gradients linearly, and
# writes what happened.
DRIVER = """
import json, yaml, torch
from safetensors.torch import save_file
from mimssl.data.sources import open_dataset
from mimssl.parts.distributed import rank, world
from mimssl.training.loop import Run, batches
from mimssl.training.recipes import read_recipe
params, data = yaml.safe_load(open("params.yaml")), open_dataset("stripes", "train")
for name in {cases}:
    try:
        run = Run(read_recipe(params, name), 0, data).start()
        stream = batches(data, run.views, run.recipe, 0, 0, {steps}, run.device)
        values = [run.advance(stream.__next__) for _ in range({steps})]
        state = {{k: v.contiguous().clone() for k, v in run.method.state_dict().items()}}
    except Exception as e: values, state = repr(e), {{}}
    save_file(state, f"{{name}}-{{rank()}}-of-{{world()}}.safetensors")
    open(f"{{name}}-{{rank()}}-of-{{world()}}.json", "w").write(json.dumps(values))
    if isinstance(values, str) and world() > 1: break          # the other process may be waiting
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder with the results of all cases, from one process and from two."
    home = tmp_path_factory.mktemp("processes")
    # fresh heads have gradients of some thousands, after which no target would move
    sgd = {"name": "sgd", "lr": .05, "momentum": 0., "weight_decay": 0., "clip": 3.}
    recipe = lambda case: {"epochs": 2, "batch_size": 2 if case.endswith("few") else 16,
                           "optimiser": sgd, "method": case.split("-")[0], "options": CASES[case]}
    make_study(home, **{case: recipe(case) for case in CASES})
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    code = DRIVER.format(steps=STEPS, cases=list(CASES))
    jobs = [python(home, code)]
    jobs += [python(home, code, RANK=str(r), LOCAL_RANK=str(r),
                    WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
             for r in range(2)]
    try:
        for job in jobs:
            text = job.communicate(timeout=600)[0]
            assert job.returncode == 0, text
    finally:
        for job in jobs: job.kill()
    return home


def result(home, case: str, rank: int, world: int):
    "Values of each step and the final state of one process."
    values = json.loads((home / f"{case}-{rank}-of-{world}.json").read_text())
    assert not isinstance(values, str), values
    return values, load_file(home / f"{case}-{rank}-of-{world}.safetensors")


@pytest.mark.parametrize("case", [case for case in CASES if case != "moca-released"])
def test_two_processes_equal_one(trained, case):
    (one, a), (two, b) = (result(trained, case, 0, world) for world in (1, 2))
    for step, (x, y) in enumerate(zip(one, two)):
        assert set(x) == set(y), f"step {step}"
        for name in x:
            assert y[name] == pytest.approx(x[name], rel=1e-4,
                                            abs=TOLERANCE), f"step {step}: {name}"
    assert set(a) == set(b)
    worst = {
        k: (a[k].double() - b[k].double()).abs().max().item() / max(1., a[k].abs().max().item())
        for k in a if a[k].numel()}
    assert {k: d for k, d in worst.items() if d > TOLERANCE} == {}


@pytest.mark.parametrize("case", CASES)
def test_processes_agree(trained, case):
    (one, a), (two, b) = (result(trained, case, rank, 2) for rank in range(2))
    assert one == two
    for name, x in a.items(): assert torch.equal(x, b[name]), name


def test_released_codebook_keeps_half_of_the_words(trained):
    assert result(trained, "moca-released", 0, 2)[1]["codebook.pointer"].item() == STEPS * 4 % 32
    assert result(trained, "moca-released", 0, 1)[1]["codebook.pointer"].item() == STEPS * 8 % 32
