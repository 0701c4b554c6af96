"""The detector from end to end on a few generated scenes: trained through the loop from an
image-text model, resumed, on two processes, evaluated, and asked about a photo.
"""
import json, signal
import pytest, torch
from safetensors.torch import load_file
from mimssl.data.scenes import generate
from support.forks import Forks
from support.tiny import make_study, ranks, start, wait_for

RUN = "import sys; from mimssl.cli import main; sys.exit(main({argv!r}))"
KILLED = """
import os, signal
from mimssl.training.loop import Run
take = Run.take
def killed(self, batch_of):
    if self.step == {step}: os.kill(os.getpid(), signal.SIGKILL)
    return take(self, batch_of)
Run.take = killed
"""
TEXT = dict(text_width=32, text_depth=1, text_heads=2, context=48)
CFM = dict(method="cfm_vit", dataset="scenes-captions", epochs=1,
           options=TEXT | dict(decoder_dim=32, decoder_depth=1, decoder_heads=2))
DETECTOR = dict(method="detector", dataset="scenes-coco", init="cfm", epochs=2, options=TEXT | dict(
    size=64, windows=1, templates="plain", channels=8, hidden=16, convs=1, anchors=32, per_level=40,
    proposals=40, regions=16, scale=[.8, 1.25]))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with 24 scenes for training and 6 for tests, and a trained image-text model."
    folder = tmp_path_factory.mktemp("detector")
    other = dict(options=DETECTOR["options"] | dict(text_heads=4))
    alone = {k: v for k, v in DETECTOR.items() if k != "init"}
    make_study(folder, cfm=CFM, detector=DETECTOR, other=DETECTOR | other, alone=alone,
               loud=DETECTOR | dict(optimiser={"lr": 1e30, "warmup_epochs": 0}), boxless=DETECTOR
               | dict(dataset="scenes-captions"), mae_start=DETECTOR | dict(init="mae"))
    generate(folder / "data/scenes", scale=.02, subsets=("coco",), progress=False)
    with Forks(folder) as run:
        for recipe in ("mae", "cfm"):
            status, text = run(RUN.format(argv=["pretrain", "--recipe", recipe, "--out",
                                                f"outputs/pretrain/{recipe}-s0"]))
            assert status == 0, text
    return folder


@pytest.fixture(scope="module")
def run(home):
    "Runs a command line in `home`: its exit code and what it prints; `before` is run first."
    with Forks(home) as forks:
        yield lambda *argv, before="": forks(before + RUN.format(argv=list(argv)))


@pytest.fixture(scope="module")
def trained(home, run):
    "The folder of a trained detector."
    status, text = run("pretrain", "--recipe", "detector")
    assert status == 0, text
    return home / "outputs/pretrain/detector-s0"


def test_the_model_inside_is_that_of_the_run_it_starts_from(home, trained):
    before = load_file(home / "outputs/pretrain/cfm-s0/method.safetensors")
    after = load_file(trained / "method.safetensors")
    frozen = {k.removeprefix("model."): x for k, x in after.items() if k.startswith("model.")}
    assert frozen and all(torch.equal(x, before[k]) for k, x in frozen.items())
    assert any(not torch.equal(x, after[k]) for k, x in before.items() if k.startswith("encoder."))


def test_a_killed_run_ends_with_the_same_bits(home, run, trained):
    again = "outputs/pretrain/again"
    argv = ("pretrain", "--recipe", "detector", "--out", again, "--init-dir",
            "outputs/pretrain/cfm-s0")
    # another name of the folder is another run, with a checkpoint of its own only while it lasts
    status, text = run(*argv, before=KILLED.format(step=4))
    assert status == -signal.SIGKILL, text
    status, text = run(*argv)
    assert status == 0, text
    for name in ("encoder.safetensors", "method.safetensors", "log.jsonl", "recipe.json"):
        assert (home / again / name).read_bytes() == (trained / name).read_bytes(), name


def test_workers_change_nothing(home, run, trained):
    argv = ("pretrain", "--recipe", "detector", "--out", "outputs/pretrain/workers", "--init-dir",
            "outputs/pretrain/cfm-s0")
    status, text = run(*argv, before="import os; os.environ['MIMSSL_WORKERS'] = '2'\n")
    assert status == 0, text
    assert (home / "outputs/pretrain/workers/method.safetensors").read_bytes() == (
        trained / "method.safetensors").read_bytes()


def test_two_processes_equal_one(home):
    argv = ["steps.py", "--steps", 3, "--recipes", "alone"]
    wait_for([start(home, *argv), *(start(home, *argv, **r) for r in ranks(2))])
    one, two = (json.loads((home / f"alone-0-of-{n}.json").read_text()) for n in (1, 2))
    assert not isinstance(one, str) and not isinstance(two, str), (one, two)
    for a, b in zip(one, two):
        assert a == pytest.approx(b, rel=1e-9)
    a, b = (load_file(home / f"alone-0-of-{n}.safetensors") for n in (1, 2))
    for name, x in a.items(): assert torch.allclose(x, b[name], rtol=1e-8, atol=1e-9), name


def test_a_loss_that_is_no_number_stops_the_run(home, run):
    status, text = run("pretrain", "--recipe", "loud", "--out", "outputs/pretrain/loud",
                       "--init-dir", "outputs/pretrain/cfm-s0")
    assert status == 1 and "the state before this step is in" in text, text


@pytest.mark.parametrize("recipe, words", [
    ("boxless", "a detector is taught with boxes, and this data set has none"),
    ("mae_start", "holds no text tower"), ("other", "text_heads 2 instead of 4")])
def test_what_no_detector_can_learn_from(home, run, recipe, words):
    status, text = run(
        "pretrain", "--recipe", recipe, "--out", f"outputs/pretrain/{recipe}-bad",
        *(() if recipe == "mae_start" else ("--init-dir", "outputs/pretrain/cfm-s0")))
    assert status == 1 and words in text and len(text.splitlines()) == 1, text


@pytest.mark.parametrize("change, words", [
    ({"bbox": [90, 5, 20, 9]}, "outside its image of 96x96 pixels"),
    ({"bbox": [5, 5, 0, 9]}, "has no area")])
def test_a_box_that_cannot_be(home, run, change, words):
    path = home / "data/scenes/coco/annotations/instances_train.json"
    good = path.read_text()
    data = json.loads(good)
    data["annotations"][7] |= change
    path.write_text(json.dumps(data))
    try:
        status, text = run("pretrain", "--recipe", "detector", "--out", "outputs/pretrain/spoilt",
                           "--init-dir", "outputs/pretrain/cfm-s0")
    finally: path.write_text(good)
    assert (status == 1 and f"annotation {data['annotations'][7]['id']}" in text
            and words in text), text


def test_a_photo_and_names(home, run, trained):
    photo = next((home / "data/scenes/coco/images/val").iterdir())
    status, text = run("detect", "--model", str(trained), "--image", str(photo), "--classes",
                       "striped star, dotted ring, a cow", "--threshold", "0", "--keep", "4",
                       "--out", "found/here")
    assert status == 0 and "4 found above 0" in text, text
    found = json.loads((home / "found/here.json").read_text())
    assert [c["name"] for c in found["categories"]] == ["striped star", "dotted ring", "a cow"]
    assert (len(found["annotations"]) == 4
            and {"bbox", "score", "segmentation", "category_id"} <= set(found["annotations"][0]))
    assert (home / "found/here.png").stat().st_size > 1000


@pytest.mark.parametrize("model, classes, words", [
    ("detector-s0", "a star, A  star", "'A star' occurs twice"),
    ("detector-s0", "a \U0001f600", "GRINNING FACE"),
    ("detector-s0", " , ", "there is no name"),
    ("cfm-s0", "a star", "was trained as 'cfm_vit'"),
    ("mae-s0", "a star", "was trained as 'mae'"),
    ("mae-s0/encoder.safetensors", "a star", "is an encoder, which cannot detect"),
    ("none", "a star", "no such file")])
def test_what_cannot_be_detected(home, run, trained, model, classes, words):
    photo = next((home / "data/scenes/coco/images/val").iterdir())
    status, text = run("detect", "--model", f"outputs/pretrain/{model}", "--image", str(photo),
                       "--classes", classes)
    assert status == 1 and words in text and len(text.splitlines()) == 1, text


def test_evaluations(home, run, trained):
    for dataset, wanted in (("scenes-coco", "novel_ap50"), ("scenes-lvis", "mask_apr")):
        status, text = run("evaluate", "--model", str(trained), "--suite", "open_vocabulary",
                           "--dataset", dataset, "--out", f"{dataset}.jsonl", "--set",
                           f"open_vocabulary.results={dataset}.json")
        assert status == 0, text
        records = [json.loads(line)
                   for line in (home / f"{dataset}.jsonl").read_text().splitlines()]
        assert (wanted in {r["metric"] for r in records}
                and {r["run"] for r in records} == {"detector-s0"})
    # the records' file, scored by the command that knows no detector, gives the same numbers
    truth = home / "data/scenes/coco/annotations/instances_val.json"
    status, text = run("score", "--kind", "coco", "--truth", str(truth), "--results",
                       "scenes-coco.json", "--iou", "bbox", "segm", "--out", "scored.jsonl")
    assert status == 0, text
    scored = {r["metric"]: r["value"]
              for r in map(json.loads, (home / "scored.jsonl").read_text().splitlines())}
    own = {r["metric"]: r["value"]
           for r in map(json.loads, (home / "scenes-coco.jsonl").read_text().splitlines())}
    for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50"):
        assert own[name] == pytest.approx(scored[name], abs=1e-9)
    for model, words in (("cfm-s0", ""), ("mae-s0", "has no text tower")):
        status, text = run("evaluate", "--model", f"outputs/pretrain/{model}",
                           "--suite", "region_recognition", "--dataset", "scenes-coco", "--set",
                           "region_recognition.sizes=[32,64]", "region_recognition.templates=plain")
        assert (status, words in text) == (int(bool(words)), True), text
    status, text = run("evaluate", "--model", "outputs/pretrain/mae-s0", "--suite",
                       "open_vocabulary", "--dataset", "scenes-coco")
    assert status == 1 and "is no detector" in text, text
