"""Two processes on half batches do what one does on the whole batch, for every method and its
forms: losses, monitors, gradient, weights, buffers.

Computed in float64 (support/steps.py), where rounding is far below what a wrong reduction changes.
"""
import json, socket
import pytest, torch
from safetensors.torch import load_file
from mimssl.methods.method import METHODS
from support.tiny import MAE, make_study, start

HEAD = dict(projector_dim=32, predictor_dim=32, output_dim=16, queue_size=64)
DINO = dict(out_dim=64, hidden_dim=32, bottleneck_dim=16, local_crops=2, local_size=16)
IBOT = DINO | dict(patch_out_dim=64)
MOCA = dict(num_codewords=32, num_new_codewords=8, skip_offset=1, early_layer=1, decoder_dim=32,
            decoder_depth=1, decoder_heads=2)
MMC = DINO | dict(cls_hidden_dim=32, cls_out_dim=16, max_block=.6, head_layers=1, cls_weight=.5)
CASES = {  # a method, or a method and a word for the form: small options
    "mae": MAE,
    "mae_ct": HEAD | dict(target_momentum=.9, stage="tune"),
    "mae_nnclr": MAE | HEAD,
    "latent_mim": dict(
        num_visible=6, gap=2, projector_dim=32, decoder_dim=32, decoder_depth=1, decoder_heads=2
    ),
    "moca": MOCA,
    "moca-cls": MOCA
    | dict(pooling="cls", new_codeword="mean", mask_ratios=[.6], decoder_mask_ratios=[.3]),
    # differs from one process on purpose: only process 0's words survive
    "moca-released": MOCA | dict(codebook="released"),
    "dino": DINO | dict(use_bn=True),
    "dino-large": DINO | dict(local_crops=0),
    "ibot": IBOT,
    "ibot-separate": IBOT | dict(patch_out_dim=32, shared_head=False, shared_head_teacher=False),
    # two images: at times one process has masked patches and the other has none
    "ibot-few": IBOT | dict(mask_shape="random"),
    "mocov3": dict(hidden_dim=32, out_dim=16),
    "mmc": MMC,
    "mmc-contrast": MMC
    | dict(
        pat_loss="contrast", combine="both", predictor=True, two_tau=False, rec_average="images"
    ),
    "mmc-few": MMC
    # the same for half-masked patches
    | dict(cls_weight=0., noise_area=.1, alien_share=0., align=4, max_block=.3),
}
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
                           "optimiser": sgd, "method": case.split("-")[0], "options": CASES[case]}
    make_study(home, **{case: recipe(case) for case in CASES})
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    argv = ["steps.py", "--steps", STEPS]
    both = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    jobs = [start(home, *argv, "--noise", 0, NOISE)]
    jobs += [start(home, *argv, **both, RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    try:
        for job in jobs:
            text = job.communicate(timeout=600)[0]
            assert job.returncode == 0, text
    finally:
        for job in jobs: job.kill()
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


def test_every_method_has_a_case(): assert {case.split("-")[0] for case in CASES} == set(METHODS)


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
