"""Two processes on half batches do what one does on the whole batch, for every method and its
forms: losses, monitors, gradient, weights, buffers.

Computed in float64 (support/steps.py), where rounding is far below what a wrong reduction changes.
"""
import json, os, subprocess, sys
import pytest, torch
from timm.models import VisionTransformer
from safetensors.torch import load_file
from mimssl.data.records import read_records, untimed
from mimssl.methods.method import find_method, method_names, tiny_forms
from mimssl.parts.encoder import save_encoder
from support.tiny import environment, make_study, ranks, start, wait_for

# a method, or a method and a word for the form -> its options for a tiny encoder
CASES = {f"{name}-{form}".strip("-"): options
         for name in method_names() for form, options in tiny_forms(name).items()}
STEPS, TOLERANCE = 3, 1e-9
# MIMSSL_TEST_PROCESSES=4 tries four, which takes twice the time
PROCESSES = int(os.environ.get("MIMSSL_TEST_PROCESSES", "2"))
NOISE = 1e-14   # some fifty times the rounding of a weight


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the results of all cases, from one process and from `PROCESSES`.

    One process trains them a second time, with noise on the start weights.
    """
    home = tmp_path_factory.mktemp("processes")
    # fresh heads have gradients of some thousands, after which no target would move
    sgd = {"name": "sgd", "lr": .05, "momentum": 0., "weight_decay": 0., "clip": 3.}
    recipe = lambda case: {"epochs": 2, "batch_size": PROCESSES if case.endswith("few") else 16,
                           "optimiser": sgd, "method": case.split("-")[0], "options": CASES[case],
                           "dataset": "flickr30k" if captions(case) else "stripes"}
    captions = lambda case: find_method(case.split("-")[0]).needs_captions
    make_study(home, **{case: recipe(case) for case in CASES})
    argv = ["steps.py", "--steps", STEPS]
    wait_for([start(home, *argv, "--noise", 0, NOISE),
              *(start(home, *argv, **r) for r in ranks(PROCESSES))])
    return home


def result(home, case: str, rank: int, world: int, noisy: bool = False):
    "Values of each step and the final state of one process."
    stem = f"{case}-{rank}-of-{world}" + "-noisy" * noisy
    values = json.loads((home / f"{stem}.json").read_text())
    assert not isinstance(values, str), values
    return values, load_file(home / f"{stem}.safetensors")


def differences(one, two) -> dict[str, float]:
    """By how much two results differ, relative to all above 1: for each step's value, and for each
    tensor of the final state.
    """
    (values, state), (other_values, other_state) = one, two
    assert [set(x) for x in values] == [set(y) for y in other_values]
    assert set(state) == set(other_state)
    found = {f"step {i}: {name}": abs(x[name] - y[name]) / max(1, abs(x[name]))
             for i, (x, y) in enumerate(zip(values, other_values)) for name in x}
    size = lambda x: x.double().abs().max().item()
    return found | {name: size(x.double() - other_state[name].double()) / max(1, size(x))
                    for name, x in state.items() if x.numel()}


@pytest.mark.parametrize("case", [case for case in CASES if case != "moca-released"])
def test_several_processes_equal_one(trained, case):
    found = differences(*(result(trained, case, 0, world) for world in (1, PROCESSES)))
    assert {name: d for name, d in found.items() if not d < TOLERANCE} == {}


@pytest.mark.parametrize("case", CASES)
def test_rounding_is_far_below_the_tolerance(trained, case):
    """What noise on the start weights does in one process: no other order of sums, on whatever
    CPU, comes near the tolerance.
    """
    found = differences(*(result(trained, case, 0, 1, noisy) for noisy in (False, True)))
    assert 0 < max(found.values()) < TOLERANCE / 20, max(found, key=found.get)


@pytest.mark.parametrize("case", CASES)
def test_processes_agree(trained, case):
    (one, a), *others = (result(trained, case, rank, PROCESSES) for rank in range(PROCESSES))
    for other, b in others:
        assert one == other
        for name, x in a.items(): assert torch.equal(x, b[name]), name


def test_released_codebook_keeps_half_of_the_words(trained):
    if PROCESSES != 2: pytest.skip("half of the codewords is what two processes keep")
    assert result(trained, "moca-released", 0, 2)[1]["codebook.pointer"].item() == STEPS * 4 % 32
    assert result(trained, "moca-released", 0, 1)[1]["codebook.pointer"].item() == STEPS * 8 % 32


def run(home, world: int, *command, **env):
    "Run Python with `command` in `world` processes, in the folder `home`."
    wait_for([subprocess.Popen([sys.executable, *command], cwd=home, env=environment(**env, **r),
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
              for r in (ranks(world) if world > 1 else [{}])])


def test_two_processes_evaluate_as_one(tmp_path):
    "Three batches of images for two processes."
    make_study(tmp_path, images=300)
    torch.manual_seed(0)
    save_encoder(tmp_path / "encoder.safetensors",
                 VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2,
                                   num_classes=0))
    found = []
    for world in (1, 2):
        run(tmp_path, world, "-m", "mimssl", "evaluate", "--model", "encoder.safetensors",
            "--dataset", "stripes", "--splits", "train,train", "--suite", "knn,linear", "--set",
            "linear.epochs=2", "--out", f"{world}.jsonl", MIMSSL_OUTPUTS=f"outputs{world}")
        found.append(untimed(read_records(tmp_path / f"{world}.jsonl")))
    assert found[0] == found[1] and len(found[0]) > 4


NEIGHBOURS = """import sys, torch
from mimssl.evaluation.knn import nearest
from mimssl.parts.distributed import join, rank
join(torch.device('cpu'))
rng = torch.Generator().manual_seed(0)
queries, gallery = (torch.randn(n, 8, generator=rng).round() for n in (70, 100))
found = [nearest(queries, gallery, 7, piece=piece, tile=16) for piece in (16, 999)]
if rank() == 0: torch.save([x for pair in found for x in pair], sys.argv[1])
"""


def test_processes_share_a_gallery_or_the_queries(tmp_path):
    "Rounded features have many equal similarities, whose order must not change either."
    for world in (1, 2): run(tmp_path, world, "-c", NEIGHBOURS, f"{world}.pt")
    one, two = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    assert all(map(torch.equal, one, two))
