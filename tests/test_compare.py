"The command compare: two sides of metric lines, their spread over seeds, and the outcomes of single images."
import json, subprocess, sys
import numpy as np
import pytest
from mimssl.cli import main
from mimssl.data.lines import append_lines, metric_line, write_lines
from mimssl.data.outcomes import read_outcomes, write_outcomes
from tiny import environment, make_study

NAMES = [f"val/{i:03}.png" for i in range(200)]


def line(run, value, metric="top1", evaluation="knn", **protocol):
    "An invented line of the run 'mae-s0', say."
    method, _, seed = run.partition("-s")
    return metric_line(run, method, evaluation, metric, value, len(NAMES), int(seed) if seed else None, "", "stripes", {"k": 20} | protocol)


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A folder with lines.jsonl (MAE and MOCA, three seeds each, and raw pixels) and outcomes of one run each."
    for name in ("DATA", "OUTPUTS", "DEVICE", "WORKERS"): monkeypatch.delenv(f"MIMSSL_{name}", raising=False)
    monkeypatch.setenv("MIMSSL_DEVICE", "cpu")
    monkeypatch.chdir(make_study(tmp_path))
    right = {"mae-s0": np.arange(200) < 80, "moca-s0": np.arange(200) % 2 == 0}
    lines = [line(f"mae-s{s}", v) for s, v in enumerate((40., 42., 41.))] + [line(f"moca-s{s}", v) for s, v in enumerate((50., 53., 51.5))] + [line("pixels", 30.)]
    lines += [line(f"mae-s{s}", v, evaluation="linear") for s, v in enumerate((60., 64.))] + [line(f"moca-s{s}", v, evaluation="linear") for s, v in enumerate((61., 64.))]
    write_lines("outputs/evaluate/all/lines.jsonl", lines)
    for found in lines:
        if found["evaluation"] == "knn" and found["run"] in right: write_outcomes("outcomes", found, NAMES, right[found["run"]])
    return tmp_path


def said(capsys, *argv, code=0):
    "What a command printed, in one piece."
    capsys.readouterr()
    assert main(["compare", *argv]) == code
    out, err = capsys.readouterr()
    assert (err if code == 0 else out) == ""
    return out if code == 0 else err


def test_seeds_decide(home, capsys):
    out = said(capsys, "moca", "mae")
    knn, linear = out.splitlines()[3:5]
    assert "51.5 ± 1.5 (3)" in knn and "41.0 ± 1.0 (3)" in knn and "+10.5" in knn and knn.endswith("yes")
    assert "+0.5" in linear and linear.endswith("no")
    assert out.endswith("1 of 2 differences exceed their spread over seeds.\n")
    one = said(capsys, "mae-s1", "pixels")
    assert "+12.0" in one and "unknown" in one and "of 1 it is unknown" in one


def test_images_decide_between_two_runs(home, capsys):
    out = said(capsys, "moca-s0", "mae-s0", "--outcomes", "outcomes")
    knn, linear = out.splitlines()[3:5]
    assert "over images" in out and "+10.0 [" in knn and linear.endswith("–")
    low = float(knn.split("[")[1].split(",")[0])
    right = [o.values for o in sorted(read_outcomes("outcomes"), key=lambda o: o.line["run"], reverse=True)]
    error = 196 * (right[0] - right[1]).std() / 200 ** .5
    assert abs(low - (10 - error)) < .7
    assert said(capsys, "moca-s0", "mae-s0", "--outcomes", "outcomes", "outcomes") == out


@pytest.mark.parametrize("format, start", [("html", "<table"), ("latex", r"\begin{tabular}"), ("markdown", "| score |")])
def test_formats(home, capsys, format, start):
    out = said(capsys, "moca", "mae", "--format", format)
    assert out.startswith(start) and "51.5" in out


def test_files_of_lines(home, capsys):
    for name in ("mae", "moca"): write_lines(f"{name}.jsonl", [line(f"{name}-s0", 50.)])
    assert "moca-s0" in said(capsys, "moca.jsonl", "mae.jsonl")
    append_lines("mae.jsonl", [line("moca-s0", 20.)])
    assert "'mae.jsonl' has the recipes mae, moca; name one of them and give --lines mae.jsonl" in said(capsys, "moca.jsonl", "mae.jsonl", code=1)
    assert "+30.0" in said(capsys, "mae", "moca", "--lines", "mae.jsonl")


def test_bad_input(home, capsys):
    refused = lambda *argv: said(capsys, *argv, code=1)
    assert "'mea' is no run, recipe or method of these lines; they know mae-s0, mae-s1" in refused("mea", "moca")
    assert "none.jsonl: no such file of metric lines" in refused("mae", "none.jsonl")
    assert "share no score" in refused("mae-s2", "moca-s0", "--lines", str(write_lines("apart.jsonl", [line("mae-s2", 1.), line("moca-s0", 2., metric="top5")])))
    (home / "log.jsonl").write_text(json.dumps({"kind": "epoch"}) + "\n")
    assert "is not a file of metric lines" in refused("mae", "moca", "--lines", "log.jsonl")
    assert "invalid choice: 'pdf'" in refused("mae", "moca", "--format", "pdf")
    write_lines("outputs/evaluate/stale/lines.jsonl", [line("mae-s0", 99.)])
    assert "run mae-s0 has two values of knn/top1" in refused("mae", "moca")


def test_bad_outcomes(home, capsys):
    refused = lambda *paths: said(capsys, "moca-s0", "mae-s0", "--outcomes", *paths, code=1)
    assert "no such file or folder of outcomes" in refused("nowhere")
    assert "give one for both sides, or one each" in refused("outcomes", "outcomes", "outcomes")
    (home / "empty").mkdir()
    assert "empty: holds no outcomes" in refused("empty")
    write_outcomes("other", line("mae-s0", 40.), [name.replace("val", "test") for name in NAMES], np.zeros(200))
    assert "are of different images" in refused("outcomes", "other")
    write_outcomes("protocol", line("mae-s0", 40., k=10), NAMES, np.zeros(200))
    assert "belong to none of the compared scores" in refused("outcomes", "protocol")
    next((home / "outcomes").iterdir()).write_bytes(b"PK\x03\x04")
    assert "damaged" in refused("outcomes")


def test_evaluate_keeps_what_compare_reads(home, capsys):
    "From two judged encoders to an interval over their images."
    for i in range(24):
        (image := home / f"stripes/val/{i % 4}/{i:03}.png").parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes((home / f"stripes/train/{i % 4}/{i:03}.png").read_bytes())
    quick = ["--dataset", "stripes", "--suite", "knn", "--set", "knn.ks=[4]", "--out", "scores.jsonl", "--outcomes", "kept"]
    assert main(["evaluate", "--model", "untrained:vit_tiny_patch16_224", "--baselines", *quick]) == 0
    out = said(capsys, "untrained", "pixels", "--lines", "scores.jsonl", "--outcomes", "kept")
    assert "95 % interval" in out and "[" in out
    kept = read_outcomes("kept")
    assert {o.line["run"] for o in kept} == {"untrained", "pixels", "untrained:vit_tiny_patch16_224"} and all(len(o.values) == 24 for o in kept)


def test_it_needs_no_torch(home):
    code = "import sys; from mimssl.cli import main; code = main(['compare', 'moca-s0', 'mae-s0', '--outcomes', 'outcomes']); sys.exit(code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=home, env=environment(), capture_output=True).returncode == 0
