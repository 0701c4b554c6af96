"""The commands compare and report: sides of records, their std over seeds, outcomes of single
images, tables with published numbers.
"""
import json, os, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import yaml
from mimssl.cli import main
from mimssl.data.records import append_records, metric_record, write_records
from mimssl.data.per_image import read_outcomes, write_outcomes
from support import ROOT
from support.tiny import environment, make_study

NAMES = [f"val/{i:03}.png" for i in range(200)]


def record(run, value, metric="top1", evaluation="knn", **protocol):
    "An invented record of the run 'mae-s0', say."
    method, _, seed = run.partition("-s")
    return metric_record(run, method, evaluation, metric, value, len(NAMES),
                         int(seed) if seed else None, "", "stripes", {"k": 20} | protocol)


@pytest.fixture
def home(alone, tmp_path, monkeypatch):
    """An evaluated study (MAE and MOCA, three seeds each, and raw pixels), other runs beside it,
    and outcomes of one run each.
    """
    monkeypatch.chdir(make_study(tmp_path))
    params = yaml.safe_load(Path("params.yaml").read_text()) | {"study": dict(
        baselines=["pixels"], evaluated=["mae", "moca"], seeds=[0, 1, 2])}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    right = {"mae-s0": np.arange(200) < 80, "moca-s0": np.arange(200) % 2 == 0}
    records = [record(f"mae-s{s}", v) for s, v in enumerate((40., 42., 41.))] + [
        record(f"moca-s{s}", v) for s, v in enumerate((50., 53., 51.5))] + [record("pixels", 30.)]
    records += [record(f"mae-s{s}", v, evaluation="linear") for s, v in enumerate((60., 64.))] + [
        record(f"moca-s{s}", v, evaluation="linear") for s, v in enumerate((61., 64.))]
    for run in {record["run"] for record in records}:
        write_records(f"outputs/evaluate/{run}/records.jsonl",
                      [record for record in records if record["run"] == run])
    # another encoder of that name
    write_records("outputs/bench/other.jsonl", [record("mae-s0", 99.)])
    write_records("outputs/bench/other_curves.jsonl", [{"epoch": 1}])
    for found in records:
        if found["evaluation"] == "knn" and found["run"] in right:
            write_outcomes("outcomes", found, NAMES, right[found["run"]])
    return tmp_path


def said(capsys, *argv, code=0, command="compare"):
    "What a command printed, in one piece."
    capsys.readouterr()
    assert main([command, *argv]) == code
    out, err = capsys.readouterr()
    assert (err if code == 0 else out) == ""
    return out if code == 0 else err


def test_seeds_decide(home, capsys):
    out = said(capsys, "moca", "mae")
    knn, linear = out.splitlines()[3:5]
    assert ("51.5 ± 1.5 (3)" in knn and "41.0 ± 1.0 (3)" in knn and "+10.5" in knn
            and knn.endswith("yes"))
    assert "+0.5" in linear and linear.endswith("no")
    assert out.endswith("1 of 2 differences exceed their std over seeds.\n")
    one = said(capsys, "mae-s1", "pixels")
    assert "+12.0" in one and "unknown" in one and "of 1 it is unknown" in one


def test_images_decide_between_two_runs(home, capsys):
    out = said(capsys, "moca-s0", "mae-s0", "--outcomes", "outcomes")
    knn, linear = out.splitlines()[3:5]
    assert "over images" in out and "+10.0 [" in knn and linear.endswith("–")
    low = float(knn.split("[")[1].split(",")[0])
    right = [o.values for o in sorted(read_outcomes("outcomes"), key=lambda o: o.record["run"],
                                      reverse=True)]
    error = 196 * (right[0] - right[1]).std() / 200 ** .5
    assert abs(low - (10 - error)) < .7
    assert said(capsys, "moca-s0", "mae-s0", "--outcomes", "outcomes", "outcomes") == out


@pytest.mark.parametrize(
    "format, start", [("html", "<table"), ("latex", r"\begin{tabular}"), ("markdown", "| score |")]
)
def test_formats(home, capsys, format, start):
    out = said(capsys, "moca", "mae", "--format", format)
    assert out.startswith(start) and "51.5" in out


def test_files_of_lines(home, capsys):
    for name in ("mae", "moca"): write_records(f"{name}.jsonl", [record(f"{name}-s0", 50.)])
    assert "moca-s0" in said(capsys, "moca.jsonl", "mae.jsonl")
    append_records("mae.jsonl", [record("moca-s0", 20.)])
    assert (
        "'mae.jsonl' has the recipes mae, moca; name one of them and give --records mae.jsonl"
        in said(capsys, "moca.jsonl", "mae.jsonl", code=1)
    )
    assert "+30.0" in said(capsys, "mae", "moca", "--records", "mae.jsonl")


def test_bad_input(home, capsys):
    refused = lambda *argv: said(capsys, *argv, code=1)
    assert (
        "'mea' is no run, recipe or method of these records; they know mae-s0, mae-s1"
        in refused("mea", "moca")
    )
    assert "none.jsonl: no such file of records" in refused("mae", "none.jsonl")
    assert "share no score" in refused("mae-s2", "moca-s0", "--records", str(write_records(
        "apart.jsonl", [record("mae-s2", 1.), record("moca-s0", 2., metric="top5")])))
    (home / "log.jsonl").write_text(json.dumps({"kind": "epoch"}) + "\n")
    assert "is not a file of records" in refused("mae", "moca", "--records", "log.jsonl")
    assert "invalid choice: 'pdf'" in refused("mae", "moca", "--format", "pdf")
    files = ["outputs/evaluate/mae-s0/records.jsonl", "outputs/bench/other.jsonl"]
    assert "run mae-s0 has two values of knn/top1" in refused("mae", "mae", "--records", *files)
    Path("params.yaml").unlink()
    assert "holds no records of a study" in refused("mae", "moca")


def test_bad_outcomes(home, capsys):
    refused = lambda *paths: said(capsys, "moca-s0", "mae-s0", "--outcomes", *paths, code=1)
    assert "no such file or folder of outcomes" in refused("nowhere")
    assert "give one for both sides, or one each" in refused("outcomes", "outcomes", "outcomes")
    (home / "empty").mkdir()
    assert "empty: holds no outcomes" in refused("empty")
    write_outcomes("other", record("mae-s0", 40.), [name.replace("val", "test") for name in NAMES],
                   np.zeros(200))
    assert "are of different images" in refused("outcomes", "other")
    write_outcomes("protocol", record("mae-s0", 40., k=10), NAMES, np.zeros(200))
    assert "belong to none of the compared scores" in refused("outcomes", "protocol")
    next((home / "outcomes").iterdir()).write_bytes(b"PK\x03\x04")
    assert "damaged" in refused("outcomes")


def test_evaluate_keeps_what_compare_reads(home, capsys):
    "From two evaluated encoders to an interval over their images."
    for i in range(24):
        (image := home / f"stripes/val/{i % 4}/{i:03}.png").parent.mkdir(
            parents=True, exist_ok=True)
        image.write_bytes((home / f"stripes/train/{i % 4}/{i:03}.png").read_bytes())
    quick = ["--dataset", "stripes", "--suite", "knn", "--set", "knn.ks=[4]", "--out",
             "scores.jsonl", "--outcomes", "kept"]
    assert main(["evaluate", "--model", "untrained:vit_tiny_patch16_224", "--baselines",
                 *quick]) == 0
    out = said(capsys, "untrained", "pixels", "--records", "scores.jsonl", "--outcomes", "kept")
    assert "95 % interval" in out and "[" in out
    kept = read_outcomes("kept")
    assert (
        {o.record["run"] for o in kept} == {"untrained", "pixels", "untrained:vit_tiny_patch16_224"}
        and all(len(o.values) == 24 for o in kept))


def test_splits_and_seed_of_an_evaluation(home, capsys):
    quick = ["--model", "untrained:vit_tiny_patch16_224", "--dataset", "stripes", "--suite",
             "clustering", "--set", "clustering.restarts=1"]
    def protocols(*argv):
        Path("found.jsonl").unlink(missing_ok=True)
        assert main([
            "evaluate", *quick, *argv, "--out", "found.jsonl"]) == 0, capsys.readouterr().err
        return [line["protocol"]
                for line in map(json.loads, Path("found.jsonl").read_text().splitlines())]
    assert {(p["split"], p["eval_seed"])
            for p in protocols("--splits", "train,train", "--eval-seed", "7", "--baselines")} == {(
                "train", 7)}
    for argv, sentence in ((["--splits", "train,test"],
                            "data set 'stripes' has no split 'test'; it has train"),
                           (["--splits", "train"], "give two names")):
        assert (main(["evaluate", *quick, "--model", "nothing.safetensors", *argv]) == 1
                and sentence in capsys.readouterr().err)  # before the model


@pytest.mark.parametrize(
    "argv", [["compare", "moca-s0", "mae-s0", "--outcomes", "outcomes"], ["report", "--published"]]
)
def test_it_needs_no_torch(home, argv):
    code = (f"import sys; from mimssl.cli import main; code = main({argv}); sys.exit(code or "
            f"bool({{'torch', 'matplotlib'}} & {{*sys.modules}}))")
    assert subprocess.run([sys.executable, "-c", code], cwd=home, env=environment(),
                          capture_output=True).returncode == 0


def test_the_project_s_own_outputs(capsys, monkeypatch):
    "What README says, on the study as it lies in outputs/."
    evaluated = {path.parent.name for path in (ROOT / "outputs/evaluate").glob("*/records.jsonl")}
    if not {"mae-s0", "dino-s0"} <= evaluated: pytest.skip("the study has not run here")
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MIMSSL_OUTPUTS", raising=False)
    out = said(capsys, "mae", "dino")
    assert "k-NN: top-1 accuracy (%)" in out and "memory" not in out
    against_pixels = said(capsys, "mae", "pixels")
    assert "None" not in against_pixels and "tokens" not in against_pixels
    tables = said(capsys, command="report")
    assert max(map(len, tables.splitlines())) <= 120 and "MoCo v3" in tables


def test_report(home, capsys):
    told = lambda *argv, code=0: said(capsys, *argv, code=code, command="report")
    out = told()
    assert (out.startswith("Classes (stripes)\n") and "41.0 ± 1.0" in out and "51.5 ± 1.5*" in out
            and "99" not in out)
    assert "leads by more than the std" in out
    assert ("mae-s2" in told("--rows", "run") and "linear" not in told("--evaluations", "knn")
            and "MOCA" not in told("--methods", "mae,pixels"))
    published = told("--published", "--methods", "moca", "--evaluations", "knn", "--format",
                     "markdown")
    assert ("MOCA ViT-B/16 v1.0, published" in published and "README of valeoai/MOCA" in published
            and "| raw pixels" not in published)
    other = told("outputs/bench/other.jsonl", "--format", "html", "--out", "deep/table.html")
    assert other == "report: deep/table.html\n" and "99.0" in Path("deep/table.html").read_text()
    write_records("videos.jsonl",
                  [record("mae-s0", 50., metric, "davis") for metric in ("jf", "j_decay")])
    assert ("decay" not in told("videos.jsonl")
            and "decay" in told("videos.jsonl", "--metrics", "all")
            and "decay" in told("videos.jsonl", "--metrics", "j_decay"))


def test_report_refuses(home, capsys):
    refused = lambda *argv: said(capsys, *argv, code=1, command="report")
    assert "no record has the method 'mea'; they have mae, moca, pixels" in refused(
        "--methods", "mea")
    assert "no record has the evaluation 'kn'" in refused("--evaluations", "kn")
    assert "no such file of records" in refused("none.jsonl")
    assert "is not a file of records" in refused("outputs/bench/other_curves.jsonl")
    assert "no records to tabulate" in refused("--methods", "pixels", "--evaluations", "linear")
    assert "a folder; name a file" in refused("--out", ".")


@pytest.mark.parametrize("argv", [["report", "--rows", "run"], ["--help"]])
def test_a_reader_that_has_enough(home, argv):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "mimssl", *argv], cwd=home, env=environment(),
                          stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
