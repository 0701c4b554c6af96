"""The pipeline: notebooks that papermill cannot misread, stages that notice every change, profiles
that compose.
"""
import json
import pytest, yaml
from support import ROOT
from support.deps import PARAMS, STAGES, declared, expected, method_file
from mimssl.data.settings import BadInput
from mimssl.data.study import compose, profiles
from mimssl.methods.method import ABOVE, method_names
from mimssl.training.recipes import read_recipe
from mimssl.training.sweeps import sweep_runs
from mimssl.training.runner import main, parameters_of
import nbformat

PIPELINE = sorted((ROOT / "nbs/pipeline").glob("*.ipynb"))


@pytest.mark.parametrize("path", PIPELINE, ids=lambda p: p.stem)
def test_pipeline_notebooks_are_plain(path):
    nb = nbformat.read(path, as_version=4)
    assert parameters_of(nb, path.name), f"{path.name}: the tagged cell assigns no parameter"
    for cell in nb.cells:
        assert not cell.get("outputs"), (f"{path.name} has outputs; pipeline notebooks are "
                                         f"committed without")
        assert not cell.source.lstrip().startswith("#|"), (
            f"{path.name} has an nbdev directive; pipeline notebooks export nothing")
        if cell.cell_type == "code":
            assert not any(
                line.startswith(("def ", "class ", "for ", "while ", "if "))
                for line in cell.source.splitlines()), f"{path.name} has logic of its own"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_known_parameters(stage):
    words = STAGES[stage]["cmd"].split()
    given = {words[i + 1] for i, w in enumerate(words) if w == "-p"}
    notebook = ROOT / next(w for w in words if w.startswith("nbs/pipeline/"))
    assert given <= set(parameters_of(nbformat.read(notebook, as_version=4)))


def test_a_misspelt_parameter_is_refused(capsys, tmp_path):
    assert main([str(ROOT / "nbs/pipeline/pretrain.ipynb"), str(tmp_path / "out.ipynb"), "-p",
                 "sed", "1"]) == 1
    assert "no parameter 'sed'; did you mean 'seed'?" in capsys.readouterr().err
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_modules_it_uses(stage):
    uses = expected(stage)
    for recipe, modules in uses.items():
        missing = modules - declared(stage, recipe)
        assert not missing, (f"dvc.yaml: add to the deps of {stage} (`python -m "
                             f"tests.support.deps` does it): {', '.join(sorted(missing))}")
    spare = {d for recipe in uses for d in declared(stage, recipe)} - set().union(*uses.values())
    assert not spare, f"dvc.yaml: remove from the deps of {stage}: {', '.join(sorted(spare))}"
    notebook = next(w for w in STAGES[stage]["cmd"].split() if w.startswith("nbs/pipeline/"))
    assert notebook in STAGES[stage]["deps"], f"dvc.yaml: add to the deps of {stage}: {notebook}"


def test_recipes_are_named_like_their_methods():
    for recipe in PARAMS["study"]["recipes"]:
        file = method_file(recipe)
        assert recipe == file.stem, (f"recipe '{recipe}' of the study belongs to {file.name}; "
                                     f"dvc.yaml finds a method's file by the recipe's name")


def continued(study: dict, recipes: dict) -> set[str]:
    "Recipes at the end of a chain of `init` that begins with one that the study trains."
    known = {n: r.get("init") for n, r in recipes.items() if n not in study["detectors"]}
    def first(name): return first(known[name]) if known.get(name) in known else name
    return {name for name in known if name not in known.values()
            and first(name) != name and first(name) in study["recipes"]}


@pytest.mark.parametrize("profile", profiles(ROOT))
def test_what_is_evaluated_follows_from_what_is_trained(profile, tmp_path):
    "The list stays in conf/ since DVC makes stages of it; this says when it is another one."
    params = yaml.safe_load(compose(profile, tmp_path / "params.yaml").read_text())
    study, more = params["study"], continued(params["study"], params["recipes"])
    assert set(study["evaluated"]) == {*study["recipes"], *more}, (
        f"conf/profile/{profile}.yaml: study.evaluated must be study.recipes and {sorted(more)}")
    assert more <= set(STAGES), f"dvc.yaml has no stages that train {more - set(STAGES)}"
    for sweep in params["sweeps"]: assert sweep_runs(params, sweep)


def test_every_method_has_a_recipe_in_the_default_study():
    named = {recipe["method"] for recipe in PARAMS["recipes"].values()}
    assert named == {*method_names(), *ABOVE}, (
        "conf/profile/smoke.yaml: give each method of mimssl/methods a small recipe")


def test_params_are_the_smoke_profile(tmp_path):
    composed = compose("smoke", tmp_path / "params.yaml").read_text()
    assert (ROOT / "params.yaml").read_text() == composed, (
        "params.yaml is not what conf/ gives: python -m mimssl.data.study compose smoke")


@pytest.mark.parametrize("profile", profiles(ROOT))
def test_every_profile_composes(profile, tmp_path):
    params = yaml.safe_load(compose(profile, tmp_path / "params.yaml").read_text())
    assert (params["profile"] == profile and set(params) == set(PARAMS)
            and set(params["study"]) == set(PARAMS["study"]))
    for name in params["recipes"]: read_recipe(params, name)
    assert (set(params["study"]["recipes"]) <= set(params["recipes"])
            and params["study"]["dataset"] in params["study"]["datasets"])


def test_an_unknown_profile_is_refused():
    with pytest.raises(BadInput, match="no profile 'benhc'"): compose("benhc")


def test_rolling_checkpoints_are_no_outputs():
    for name, stage in STAGES.items():
        for out in [*stage["outs"], *stage.get("metrics", []), *stage.get("plots", [])]:
            path, options = (out, {}) if isinstance(out, str) else next(iter(out.items()))
            assert ("local" not in path
                    and not options.get("persist")), f"{name}: {path} must not outlive its stage"
    assert "/outputs/local/" in (ROOT / ".gitignore").read_text()


def test_dvc_is_quiet():
    config = (ROOT / ".dvc/config").read_text()
    assert "analytics = false" in config and "hardlink,symlink" in config


def test_executed_notebooks_hold_no_times():
    for path in sorted((ROOT / "outputs").glob("*/**/*.ipynb")):
        if "local" in path.relative_to(ROOT / "outputs").parts: continue
        nb = json.loads(path.read_text())
        assert set(nb["metadata"]) == {"kernelspec", "language_info"}, f"{path}: not normalised"
        assert all(set(c["metadata"]) <= {"tags"} for c in nb["cells"]), f"{path}: not normalised"
