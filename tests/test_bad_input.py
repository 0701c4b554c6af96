"Whatever is wrong with what a user gave: one clear sentence and exit code 1, before any long work."
import argparse, re, shutil, subprocess, sys
import pytest, torch, yaml
from mimssl import cli
from mimssl.cli import OPTIONS, main
from mimssl.data import scenes, study
from mimssl.data.options import exit_code
from mimssl.data.settings import BadInput
from mimssl.methods.method import find_method
from mimssl.parts.encoder import EncoderConfig
from mimssl.parts.formats import load
from mimssl.report.results import trained_runs
from mimssl.training import jobs
from support.tiny import ENCODER, environment, make_study


@pytest.fixture
def home(alone, tmp_path, monkeypatch):
    "A tiny study in the working directory."
    monkeypatch.chdir(make_study(tmp_path))
    return tmp_path


def refused(capsys, *argv) -> str:
    "The sentence with which a command is refused."
    capsys.readouterr()
    assert main(list(argv)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def pretrain(capsys, *more): return refused(capsys, "pretrain", "--recipe", "mae", *more)


@pytest.mark.parametrize("change, sentence", [
    ("epoch=3", "no option 'epoch' (did you mean 'epochs'?)"),
    ("optimiser.warmup_epoch=3", "did you mean 'warmup_epochs'?"),
    ("encoder.size=tinny", "encoder size 'tinny' is unknown"),
    ("encoder.num_heads=3", "is not a multiple of num_heads 3; give one of 1, 2, 4, 8, 16, 32"),
    ("encoder.embed_dim=wide", "embed_dim is 'wide'; give a whole number"),
    ("options.mask_ration=0.5", "did you mean 'mask_ratio'?"),
    ("options.mask_ratio=1.2", "mask_ratio is 1.2"),
    ("options.mask_ratio=0.99", "leaves none of 16 patches visible"),
    ("method=mea", "did you mean 'mae'?"),
    ("epochs=0", "epochs is 0; give 1 or more"),
    ("batch_size=64", "batch_size 64 is larger than the data set 'stripes' of 32 images"),
    ("accumulate=3", "cannot be split into 3 micro-batches"),
    ("precision=fp8", "precision is 'fp8'"),
    ("precision=fp16", "fp16 needs a GPU"),
    ("optimiser.lr=0", "lr is 0"),
    ("optimiser.name=adam", "name is 'adam'"),
    ("dataset=strips", "data set 'strips' is unknown"),
    ("dataset=imagenet1k", "imagenet1k"),
    ("split=trian", "trian"),
    ("init=mae", "is initialised by itself"),
    ("epochs", "is not of the form key=value"),
])
def test_a_wrong_value(home, capsys, change, sentence):
    assert sentence in pretrain(capsys, "--set", change)
    assert not (home / "outputs/pretrain").exists(), "nothing was computed"


def test_a_wrong_command(home, capsys):
    assert "'--recipe'" in refused(capsys, "pretrain") or "--recipe" in refused(capsys, "pretrain")
    assert "no recipe 'mea' (did you mean 'mae'?)" in refused(capsys, "pretrain", "--recipe", "mea")
    assert "no such file of parameters" in pretrain(capsys, "--params", "none.yaml")
    assert "unrecognized arguments: --epochs 3" in pretrain(capsys, "--epochs", "3")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_device_that_is_not_there(home, capsys):
    assert "torch sees no such device" in pretrain(capsys, "--device", "cuda")


def test_images_that_cannot_be_used(home, capsys):
    train = home / "stripes/train"
    image = train / "1/001.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:len(whole) // 2])
    assert "1/001.png: cannot be read as an image" in pretrain(capsys)
    image.write_bytes(whole)
    assert "smaller than 64" in pretrain(capsys, "--set", "encoder.patch_size=64",
                                         "encoder.image_size=64")
    (train / "empty").mkdir()
    assert "empty" in pretrain(capsys)
    (train / "empty").rmdir()
    shutil.move(train, home / "elsewhere")
    assert "stripes" in pretrain(capsys)


def test_a_checkpoint_of_another_architecture(home, capsys):
    params = yaml.safe_load((home / "params.yaml").read_text())
    small = params["recipes"]["mae"] | {"epochs": 1, "optimiser": {"lr": 1e-3}}
    params["recipes"] |= {"first": small,
                          "wide": small | {"init": "first", "encoder": ENCODER | {"embed_dim": 64}}}
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    sentence = refused(capsys, "pretrain", "--recipe", "wide")
    assert "starts from 'first'" in sentence and "--recipe first --seed 0" in sentence
    assert main("pretrain --recipe first".split()) == 0
    sentence = refused(capsys, "pretrain", "--recipe", "wide")
    assert ("of another architecture" in sentence and "width 32" in sentence
            and "width 64" in sentence)
    weights = home / "outputs/pretrain/first-s0/method.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "damaged" in refused(capsys, "pretrain", "--recipe", "wide")


@pytest.mark.parametrize("init, sentence", [
    (dict(num_heads=0), "init: num_heads is 0; give 1 or more"),
    (dict(num_heads=-2), "init: num_heads is -2; give 1 or more"),
    (dict(num_heads=3), "num_heads is 3, but it has 2 attention heads"),
    (dict(part="x."), "holds one encoder and no part 'x.'"),
    (dict(source="mae", part="x."), "the source of init is the recipe 'mae'; write init: mae"),
    (dict(source="/dev/null"), "/dev/null: is no file of weights"),
    (dict(source=""), "init is '', which is neither"),
    (dict(source="a" * 5000), "which is neither a recipe, nor a file")])
def test_an_encoder_that_cannot_start_a_run(home, capsys, init, sentence):
    "Also where the run is done already, which the wrong number of heads would not change."
    run = "outputs/pretrain/mae-s0"
    short = ["--set", "epochs=1", "optimiser.warmup_epochs=0"]
    assert main(["pretrain", "--recipe", "mae", *short]) == 0
    params = yaml.safe_load((home / "params.yaml").read_text())
    for given in ({}, init):
        params["recipes"]["next"] = params["recipes"]["mae"] | {"init": {"source": run} | given}
        (home / "params.yaml").write_text(yaml.safe_dump(params))
        if not given: assert main(["pretrain", "--recipe", "next", *short]) == 0
    assert sentence in refused(capsys, "pretrain", "--recipe", "next", *short)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    "Is not called truncated."
    def denied(*_, **__): raise PermissionError(13, "Permission denied")
    file = tmp_path / "weights.pth"
    torch.save({}, file)
    monkeypatch.setattr(torch, "load", denied)
    assert sentence_of(lambda: load(file)) == (
        f"{file}: permission denied; ask its owner for access, or choose another place.")


def test_files_that_may_not_grow(home):
    "Neither safetensors nor torch says it by an `OSError`."
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2); "
            "from mimssl.cli import main; sys.exit(main('pretrain --recipe mae'.split()))")
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True,
                          text=True)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert len(told) == 1 and "file too large; nothing was lost before it" in told[0], told


def test_a_model_that_is_not_one(home, capsys):
    assert "no such file of weights" in refused(capsys, "evaluate", "--model", "none.safetensors",
                                                "--dataset", "stripes")
    assert "nor a timm model" in refused(capsys, "evaluate", "--model", "vit_tiniest", "--dataset",
                                         "stripes")
    assert "not in the suite" in refused(capsys, "evaluate", "--model", "vit_tiny_patch16_224",
                                         "--suite", "kn")


def test_a_loss_that_is_no_number(home, capsys):
    sentence = pretrain(capsys, "--set", "optimiser.lr=1.0e+30", "optimiser.warmup_epochs=0")
    assert "step 1: the loss term 'loss' is nan" in sentence
    (saved,) = (home / "outputs/local").glob("checkpoints/*/before-step-1.pt")
    state = torch.load(saved, weights_only=True)
    assert state["step"] == 1 and all(x.isfinite().all() for x in state["method"].values())


@pytest.mark.parametrize("argv, sentence", [
    (["--scale", "nan"], "scale is nan; give a number above 0"),
    (["--scale", "inf"], "scale is inf; give a number above 0"),
    (["--seed", "-1"], "seed is -1; give 0 or more"), (["--level", ""], "invalid choice: ''"),
    (["."], "the working directory"), ([""], "the working directory"),
    (["params.yaml"], "is a file; name a folder"), (["params.yaml/x"], "check the path"),
    (["foreign"], "holds no generated scenes")])
def test_a_place_where_no_scenes_can_be(home, capsys, argv, sentence):
    (home / "foreign").mkdir()
    (home / "foreign/version.json").write_text('{"name": "mine", "files": 0}')
    before = sorted(home.rglob("*"))
    assert exit_code(lambda: scenes.main(argv)) == 1
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("argv", [["1", "2"], ["0"], ["1000"], ["x"], ["²"], ["--job", "2"]])
def test_jobs_refuses_in_one_sentence(home, capsys, argv):
    assert jobs.main(argv) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert len(argv) > 1 or "give a whole number from 1 to 999" in err


@pytest.mark.parametrize("argv", [[], ["make"], ["compose"], ["compose", "none"], ["stale", "x"]])
def test_study_refuses_in_one_sentence(home, capsys, argv):
    assert study.main(argv) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err


def test_the_process_exits_with_1(home):
    done = subprocess.run([sys.executable, "-m", "mimssl", "pretrain", "--recipe", "mea"],
                          env=environment(), capture_output=True, text=True)
    assert ((done.returncode, done.stdout) == (1, "")
            and done.stderr.startswith("error: there is no recipe 'mea'"))


@pytest.mark.parametrize("method, old, new", [
    ("moca", "num_words", "num_codewords"), ("moca", "num_new_words", "num_new_codewords"),
    ("moca", "new_word", "new_codeword"), ("ibot", "mask_ratio_spread", "mask_ratio_range")])
def test_a_retired_option_names_its_successor(method, old, new):
    with pytest.raises(BadInput, match=f"no option '{old}' any more; it is called '{new}' now"):
        find_method(method)(EncoderConfig(**ENCODER), **{old: 1})


def test_other_retired_names(home, capsys):
    assert "use masked or all" in sentence_of(
        lambda: find_method("latent_mim")(EncoderConfig(**ENCODER), target_sees="hidden"))
    assert "study.judged of params.yaml is called study.evaluated now" in sentence_of(
        lambda: trained_runs({"judged": ["mae"], "seeds": [0]}))
    assert "--lines is called --records now" in refused(capsys, "compare", "a", "b", "--lines", "x")


@pytest.mark.parametrize("argv", [["--models", "x"], ["--models=x", "--images", "y"]])
def test_models_is_called_model(capsys, argv):
    assert "--models is called --model now" in refused(capsys, "explore", *argv)


def commands() -> dict[str, argparse.ArgumentParser]:
    "Command -> its parser."
    return next(a for a in cli.make_parser()._actions if a.choices and a.dest == "command").choices


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_says_what_it_does(name):
    for action in commands()[name]._actions:
        assert action.help, f"{name} {action.dest}"
        shown = action.choices or action.nargs == 0 or action.metavar
        assert shown or action.dest in ("device", "model", "recipe"), f"{name} {action.dest}"


def test_help_knows_the_names():
    "Which it holds itself, since what defines them takes seconds to import."
    from mimssl.data.scenes import LEVELS
    from mimssl.parts.encoder import SIZES
    choices = lambda name, dest: next(a.choices for a in commands()[name]._actions
                                      if a.dest == dest)
    assert choices("data", "level") == tuple(LEVELS)
    assert choices("bench", "encoder") == tuple(SIZES)


def test_without_a_command_all_are_listed(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^ +{name} ", told, re.MULTILINE) for name in OPTIONS), told


@pytest.mark.parametrize("argv, sentence", [
    (["--sizes", "knn=10"], "--sizes are those of evaluations; add --evaluations"),
    (["--evaluations", "--sizes", "knn=x"], "write the name of an evaluation and its sizes"),
    (["--evaluations", "--sizes", "knn=²"], "write the name of an evaluation and its sizes"),
    (["--evaluations", "--sizes", "knn=" + "9" * 5000], "write the name of an evaluation"),
    (["--batch", "0"], "--batch is 0; give 1 or more"),
    (["--rounds", "0"], "--rounds is 0; give 1 or more"),
    (["--libraries", "--rounds", "-1"], "--rounds is -1; give 1 or more"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"), (["--encoder", "tinny"], "invalid choice"),
    (["--out", "."], "--out is '.', a folder; name a file"),
    (["--out", "params.yaml"], "params.yaml, line 1: not JSON"),
    (["--out", "params.yaml/x"], "the folder of --out is 'params.yaml'"),
    (["--out", "/dev/null"], "--out is '/dev/null', no regular file; name another one")])
def test_bench_refuses_before_it_measures(home, capsys, argv, sentence):
    assert sentence in refused(capsys, "bench", *argv)


def test_a_number_of_results_that_is_none(home, capsys):
    for given in ("²", "0", "-1", "9" * 5000, "x"):
        argv = ["--kind", "lvis", "--truth", "x", "--results", "y", f"--per-image={given}"]
        assert "give 1 or more, or all" in refused(capsys, "score", *argv)


def sentence_of(call) -> str:
    "What `call` is refused with."
    with pytest.raises(BadInput) as refusal: call()
    return str(refusal.value)
