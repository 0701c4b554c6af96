"""No option is ignored: whatever a field of the encoder or of a method's options takes, it changes
the network, what a step computes or how it is trained, or it is refused in one sentence.
"""
import hashlib, itertools, json, math, re, types, typing
from dataclasses import dataclass, fields
import pytest, torch
from safetensors.torch import load_file
from mimssl.data.scenes import generate
from mimssl.data.options import build
from mimssl.data.settings import BadInput
from mimssl.data.sources import open_dataset
from mimssl.methods.method import ABOVE, At, find_method, method_names, tiny_forms
from mimssl.parts.encoder import EncoderConfig
from mimssl.training.loop import Run, batches
from mimssl.training.recipes import Group, KnnCurve, Optimiser, Recipe, read_recipe
from support.tiny import ENCODER, make_study, ranks, start, wait_for

SGD = {"name": "sgd", "lr": .05, "momentum": 0., "weight_decay": 0., "clip": 3.}
# `size` is what the three numbers override
ENCODERS = (ENCODER, {"depth": 2, "patch_size": 8, "image_size": 32})
KNOWN = {}   # what the methods' forms come to


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with 8 images of stripes, their captions (one for tests is long), and a few scenes."
    folder = make_study(tmp_path_factory.mktemp("options"), images=8)
    captions = json.loads((folder / "captioned/captions.json").read_text())
    captions.append(captions[0] | {"split": "test", "captions": ["a long story " * 40]})
    (folder / "captioned/captions.json").write_text(json.dumps(captions))
    generate(folder / "data/scenes", scale=.02, subsets=("coco",), progress=False)
    return folder


@pytest.fixture
def there(home, monkeypatch, alone):
    "The working directory is `home`."
    monkeypatch.chdir(home)
    return home


def recipe_of(method: str, encoder: dict, options: dict) -> dict:
    "A recipe of a few steps on the images that the method wants."
    wants = ("scenes-coco" if method == "detector"
             else "flickr30k" if find_method(method).needs_captions else "stripes")
    return {"method": method, "dataset": wants, "encoder": encoder, "options": options,
            "epochs": 1 if method == "detector" else 2, "batch_size": 8, "optimiser": SGD}


def stages(method: str, encoder: dict, options: dict):
    """What a short training comes to, bit by bit: names and shapes of the network, the values of
    each step, the final state, what is said of other data, what a detector finds, and what is done
    to weights that moved far. Raises `BadInput`.
    """
    recipe = read_recipe({"recipes": {"x": recipe_of(method, encoder, options)}}, "x")
    data = open_dataset(recipe.dataset, recipe.split)
    run = Run(recipe, 0, data)
    yield {name: tuple(x.shape) for name, x in run.method.state_dict().items()}
    made = lambda steps: batches(data, run.views, recipe, 0, 0, steps, run.device, run.items)
    stream = made(run.start().total)
    for _ in range(run.total): yield run.advance(stream.__next__)
    yield checksums(run.method)
    if run.method.needs_captions:
        yield said(lambda: run.method.check_data(open_dataset(recipe.dataset, "test")))
    if method == "detector":
        detector, images = run.method.eval(), next(made(1))["image"][0]
        found = detector.detect(images, detector.vocabulary(["ball", *detector.base]))
        yield [{k: x.tolist() for k, x in f.items()} for f in found]
    with torch.no_grad():
        for p in run.method.parameters(): p.add_(3.)   # weights that moved far meet their bounds
    run.method.after_step(At(run.total - 1, run.total))
    yield checksums(run.method)


def checksums(method) -> dict[str, bytes]:
    "Tensor of the state -> what identifies its bytes."
    return {name: hashlib.sha256(x.contiguous().numpy().tobytes()).digest()
            for name, x in method.state_dict().items()}


def said(call) -> str | None:
    "What a refusal says; None where there is none."
    try: call()
    except BadInput as refused: return str(refused)


def alternatives(kind, value, refusal) -> dict[object, list]:
    """Other values of a field of type `kind`: name -> values, of which one must make a difference.
    `refusal(value)`: what is said of a wrong one.
    """
    kinds = [k for k in (typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,))
             if k is not type(None)]
    if bool in kinds: return {"": [not value]}
    if str in kinds:   # the sentence lists the choices; without one, anything goes
        said = refusal("?")
        words = re.findall(r"\w+", said.split("use ")[-1]) if said else ["?"]
        return {word: [word] for word in words if word != value}
    if int in kinds:
        return {"": [8, 2, 1] if value is None else [value + 1, 2 * value, value // 2, 2, 1]}
    if float in kinds:
        return {"": [.5, .9] if value is None
                else [value / 2, value / 100, (1 + value) / 2, 2 * value + .1]}
    return {i: [[*value[:i], other, *value[i + 1:]]
                for other in (.8 * x, .5 * x, .5 + x / 2, sum(value) / len(value))]
            for i, x in enumerate(value)}


def pairs(method: str, which: int, name: str) -> dict[object, list[tuple]]:
    """What to compare for a field of the encoder (`which` 0) or of the options (1): name -> pairs
    of (encoder, options), with the field as it is in a form of the method, and with another value.
    """
    cls, found = (EncoderConfig, find_method(method).Options)[which], {}
    kind = typing.get_type_hints(cls)[name]
    for form in itertools.product(ENCODERS if name == "size" else ENCODERS[:1],
                                  tiny_forms(method).values()):
        put = lambda value: tuple(x | {name: value} if i == which else x
                                  for i, x in enumerate(form))
        value = getattr(build(cls, form[which], method), name)
        known = lambda value: said(lambda: list(stages(method, *put(value))))
        for key, others in alternatives(kind, value, known).items():
            found.setdefault(key, []).append([(form, put(v)) for v in others if v != value])
    # the first other value of each form first
    return {key: [pair for row in itertools.zip_longest(*groups) for pair in row if pair]
            for key, groups in found.items()}


def differ(method: str, form: tuple, other: tuple) -> bool | None:
    "Do two trainings differ? None where the other is refused."
    key = method, json.dumps(form)
    if key not in KNOWN: KNOWN[key] = list(stages(method, *form))
    try:
        return any(a != b for a, b in itertools.zip_longest(stages(method, *other), KNOWN[key]))
    except BadInput: return None


def inert(method: str) -> dict[str, list[tuple]]:
    "Fields without any effect: name -> the pairs that were compared."
    found = {}
    for which, cls in enumerate((EncoderConfig, find_method(method).Options)):
        for field in fields(cls):
            for key, group in pairs(method, which, field.name).items():
                taken = []
                for pair in group:
                    different = differ(method, *pair)
                    if different: break
                    if different is not None: taken.append(pair)
                else:
                    if taken: found[f"{field.name} {key}".strip()] = taken
    return found


@pytest.mark.parametrize("method", [*method_names(), *ABOVE])
def test_every_option_has_an_effect(method, there, tmp_path):
    "Some show it on two processes only."
    left = inert(method)
    if left: left = inert_on_two(method, left, tmp_path)
    assert not left, f"{method} ignores {', '.join(left)}"


def inert_on_two(method: str, left: dict, home) -> dict:
    "Those of `left` that change nothing on two processes either."
    cases = {f"{i}-{j}-{k}": form for i, group in enumerate(left.values())
             for j, pair in enumerate(group) for k, form in enumerate(pair)}
    make_study(home, images=8, **{c: recipe_of(method, *form) for c, form in cases.items()})
    argv = ["steps.py", "--steps", 2, "--recipes", *cases]
    wait_for([start(home, *argv, **r) for r in ranks(2)])

    def result(case):
        values = json.loads((home / f"{case}-0-of-2.json").read_text())
        assert not isinstance(values, str), values
        return values, {n: x.tolist() for n, x in
                        load_file(home / f"{case}-0-of-2.safetensors").items()}
    return {name: group for i, (name, group) in enumerate(left.items())
            if all(result(f"{i}-{j}-0") == result(f"{i}-{j}-1") for j in range(len(group)))}


def test_an_ignored_option_is_found(there, monkeypatch):
    "A method that forgets an option, as decoders did with `mlp_ratio`, is noticed."
    from mimssl.methods import mae

    @dataclass(frozen=True)
    class Options(mae.MAEOptions):
        forgotten: int = 3
    monkeypatch.setattr(mae.MAE, "Options", Options)
    assert list(inert("mae")) == ["forgotten"]


NEVER = (math.nan, math.inf, -math.inf, 10**400, [math.nan, 1], [.5, math.inf])
ODD = (*NEVER, "nan", "inf", ".inf", -1, 0, -.5, 2.5, True, "x", "", None, {}, {"a": 1}, [], [1],
       [.5, .2], [0, 0], [1, 2, 3], ["x", 1], [[1, 1], 1], 2**70)
PARTS = {"encoder": EncoderConfig, "optimiser": Optimiser, "knn": KnnCurve,
         "optimiser.groups.bias": Group}


def odd_values(method: str, cls, prefix: str) -> list[str]:
    "Values of the fields of `cls` that end in a traceback, and numbers taken that are none."
    recipe, bad = {"method": method, "encoder": ENCODER, "options": tiny_forms(method)[""]}, []
    for field, value in itertools.product(fields(cls), ODD):
        what = f"{prefix}{field.name} = {value!r:.40}"
        try:
            read = read_recipe({"recipes": {"x": recipe}}, "x", {f"{prefix}{field.name}": value})
            if prefix in ("options.", "encoder."):
                find_method(method)(read.encoder, **read.options).views()
            never = (*NEVER, *(("nan", "inf") if "float" in str(field.type) else ()))
            if any(value is x for x in never): bad.append(f"{what} is taken")
        except BadInput: continue
        except Exception as error: bad.append(f"{what}: {error!r}")
    return bad


@pytest.mark.parametrize("method", [*method_names(), *ABOVE])
def test_no_odd_value_of_an_option_ends_in_a_traceback(method):
    assert not odd_values(method, find_method(method).Options, "options.")


@pytest.mark.parametrize("part", ["", *PARTS])
def test_no_odd_value_of_a_recipe_ends_in_a_traceback(part):
    assert not odd_values("mae", PARTS.get(part, Recipe), part and f"{part}.")


@pytest.mark.parametrize("method, option, value, sentence", [
    ("mae", "mask_ratio", math.nan, "mask_ratio is nan; give a finite number"),
    ("mae_nnclr", "loss_weight", math.inf, "loss_weight is inf; give a finite number"),
    ("cfm_vit", "max_scale", math.inf, "max_scale is inf; give a finite number"),
    ("cfm_vit", "crop_scale", [.5, .2], "scale is (0.5, 0.2); give two shares"),
    ("mmc", "max_block", math.nan, "max_block is nan; give a finite number"),
    ("moca", "mask_ratios", [math.nan, .5], "mask_ratios is nan; give a finite number"),
    ("dino", "global_scale", [1], "global_scale is [1]; give a list of 2 values"),
    ("ibot", "local_scale", [1], "local_scale is [1]; give a list of 2 values"),
    ("mmc", "global_scale", [1], "global_scale is [1]; give a list of 2 values"),
    ("mae_ct", "layer_decay", math.inf, "layer_decay is inf; give a finite number")])
def test_odd_values_of_options(method, option, value, sentence):
    options = tiny_forms(method)[""] | {option: value}
    read = lambda: find_method(method)(EncoderConfig(**ENCODER), **options).views()
    assert sentence in said(read)


@pytest.mark.parametrize("change, sentence", [
    ({"epochs": 10**9}, "epochs is 1000000000; give 1000000 or less"),
    ({"knn.temperature": math.inf}, "knn.temperature is inf; give a finite number"),
    ({"optimiser.views_per_image": -1}, "views_per_image is -1; give 1 or more"),
    ({"optimiser.weight_decay_end": -1}, "weight_decay_end is -1.0; give 0 or more"),
    ({"optimiser.groups.bias.lr": -1}, "optimiser: a group's lr is -1.0; give 0 or more")])
def test_odd_values_of_recipes(change, sentence):
    assert sentence in said(lambda: read_recipe({"recipes": {"x": {"method": "mae"}}}, "x", change))
