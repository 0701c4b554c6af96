"""Two processes on half batches do what one does on the whole batch, for every method and its
forms: losses, monitors, gradient, weights, buffers.

Computed in float64 (support/steps.py), where rounding is far below what a wrong reduction changes.
"""
import json
import pytest, torch
from safetensors.torch import load_file
from mimssl.methods.method import find_method, method_names, tiny_forms
from support.tiny import make_study, ranks, start, wait_for

# a method, or a method and a word for the form -> its options for a tiny encoder
CASES = {f"{name}-{form}".strip("-"): options
         for name in method_names() for form, options in tiny_forms(name).items()}
STEPS, TOLERANCE = 3, 1e-9
NOISE = 1e-14   # some fifty times the rounding of a weight


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the results of all cases, from one process and from two.

    One process trains them a second time, with noise on the start weights.
    """
    home = tmp_path_factory.mktemp("processes")
    # fresh heads have gradients of some thousands, after which no target would move
    sgd = {"name": "sgd", "lr": .05, "momentum": 0., "weight_decay": 0., "clip": 3.}
    recipe = lambda case: {"epochs": 2, "batch_size": 2 if case.endswith("few") else 16,
                           "optimiser": sgd, "method": case.split("-")[0], "options": CASES[case],
                           "dataset": "flickr30k" if captions(case) else "stripes"}
    captions = lambda case: find_method(case.split("-")[0]).needs_captions
    make_study(home, **{case: recipe(case) for case in CASES})
    argv = ["steps.py", "--steps", STEPS]
    wait_for([start(home, *argv, "--noise", 0, NOISE),
              *(start(home, *argv, **r) for r in ranks(2))])
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
def test_two_processes_equal_one(trained, case):
    found = differences(*(result(trained, case, 0, world) for world in (1, 2)))
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
    (one, a), (two, b) = (result(trained, case, rank, 2) for rank in range(2))
    assert one == two
    for name, x in a.items(): assert torch.equal(x, b[name]), name


def test_released_codebook_keeps_half_of_the_words(trained):
    assert result(trained, "moca-released", 0, 2)[1]["codebook.pointer"].item() == STEPS * 4 % 32
    assert result(trained, "moca-released", 0, 1)[1]["codebook.pointer"].item() == STEPS * 8 % 32
