"The claims are data: every side of every test is a variant of a sweep or a method of the study."
import json, math, subprocess, sys
import pytest, yaml
from support import ROOT
from mimssl.cli import main
from mimssl.data.records import metric_record, write_records
from mimssl.data.study import compose
from mimssl.evaluation.suite import evaluations
from mimssl.report.claims import claims
from mimssl.training.sweeps import read_sweep, sweep_runs

# read from logs or counted, and not from a suite
OWN = ("training", "curve", "speed", "recipe_cost", "prompt_threshold")


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    path = tmp_path_factory.mktemp("claims") / "params.yaml"
    return yaml.safe_load(compose("claims", path).read_text())


def sides(test: dict) -> list[str]:
    "The names that a test compares."
    named = [test[k] for k in ("better", "no_worse", "of") if k in test]
    return list(map(str, [*named, *(x for k in ("than", "differ", "alike", "gap")
                                    for x in test.get(k, []))]))


@pytest.mark.parametrize("id", claims())
def test_a_claim_compares_what_is_run(id, params):
    claim = claims()[id]
    labels = {sweep: {v["label"] for v in read_sweep(params, sweep).variants}
              for sweep in claim.sweeps}
    for test in claim.tests:
        for side in sides(test):
            name = side.split()[0]
            sweep, _, label = name.rpartition(":")
            known = labels[sweep] if sweep else set().union(*labels.values()) | {
                *params["study"]["evaluated"]}
            assert label in known, f"{id}: '{side}' is neither in {claim.sweeps} nor in the study"
        for score in test["in"]:
            evaluation = score.split("/")[0]
            if evaluation in OWN: continue
            suites = [read_sweep(params, s).suite for s in claim.sweeps] or [
                params["study"]["suite"]]
            assert all(evaluation in suite for suite in suites), f"{id}: {evaluation} is not run"
            assert evaluation in evaluations()


def test_every_sweep_answers_a_claim_and_says_what_it_costs(params):
    for name in set(params["sweeps"]) - {"collapse"}:   # which the default study runs
        sweep = read_sweep(params, name)
        assert sweep.claim and all(id in claims() for id in sweep.claim.split()), name
        assert sweep.minutes and list(sweep.seeds) == [0, 1, 2], name
        for id in sweep.claim.split():
            assert name in claims()[id].sweeps or name.startswith("learned"), (name, id)


def test_the_runs_of_a_sweep_read_their_curve_on_pictures_with_classes(params):
    for name in params["sweeps"]:
        for run, (recipe, _) in sweep_runs(params, name).items():
            assert not recipe.knn.every or (recipe.knn.dataset or recipe.dataset) == "scenes", run


def test_the_default_study_runs_none_of_the_expensive_sweeps():
    default = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(default["sweeps"]) == {"collapse"}
    assert len(sweep_runs(default, "collapse")) <= 4


def test_the_command():
    run = lambda *more: subprocess.run([sys.executable, "-m", "mimssl", "claims", *more], cwd=ROOT,
                                       capture_output=True, text=True)
    shown = run("--paper", "moca")
    assert shown.returncode == 0 and "MO-4" in shown.stdout and "of 4 claims" in shown.stdout
    found = json.loads(run("--json").stdout)
    assert [entry["id"] for entry in found] == list(claims())
    for entry in found:   # no outcome from one seed, none without its numbers
        decided = entry["outcome"] != "not testable here"
        assert not decided or all(e["seeds"] > 1 or e["counted"] for e in entry["effects"]
                                  if e["outcome"] == entry["outcome"])
    wrong = run("--paper", "mocha")
    assert wrong.returncode == 1 and "no claims of 'mocha'" in wrong.stderr


RECORD = metric_record("mae-s0", "mae", "knn", "top1", 50., 10, 0, "", "scenes", {})
ODD = ([], None, {}, {"run": 1}, 3, RECORD | {"run": None}, RECORD | {"value": "x"},
       RECORD | {"value": math.nan})


@pytest.fixture
def home(tmp_path, monkeypatch, capsys):
    "One record of one run, and a function that adds a line to a file of outputs/."
    (tmp_path / "settings.ini").write_text("")
    monkeypatch.chdir(tmp_path)

    def add(file: str, *found) -> str:
        "What `claims` is refused with."
        path = tmp_path / "outputs" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(x) + "\n" for x in found))
        codes = [main(argv) for argv in (["claims"], ["claims", "--json"])]
        out, err = capsys.readouterr()
        assert codes == [1, 1] and out == "" and err.count("\n") == 2, err
        return err
    return add


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("file", ["evaluate/mae-s0/records.jsonl", "ablate/target/records.jsonl",
                                  "bench/laptop.jsonl"])
def test_a_line_that_is_no_record(home, file, odd):
    assert f"{file}, line 2: " in home(file, RECORD, odd)


@pytest.mark.parametrize("file", ["bench/times.jsonl", "ablate/target/curves.jsonl"])
def test_a_line_of_a_log_that_is_none(home, file):
    write_records("outputs/ablate/target/records.jsonl", [RECORD])   # a sweep that has run
    for odd in ([], None, {}, {"fingerprint": [], "run": 1}):
        assert f"{file}, line 1: " in home(file, odd)


def test_outputs_that_are_no_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "settings.ini").write_text("")
    (tmp_path / "outputs").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert main(["claims"]) == 1
    assert "is no folder of results" in capsys.readouterr().err
