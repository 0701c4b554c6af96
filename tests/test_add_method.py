"""A method is added by one notebook and one recipe: the example of nbs/methods/method.ipynb, in a
copy of the project and as a package of its own.
"""
import hashlib, json, shutil, subprocess, sys
from pathlib import Path
import pytest, yaml
from support import ROOT
from support.tiny import environment, make_study

RECIPE = {"method": "simmim", "dataset": "scenes", "encoder": "${study.encoder}", "epochs": 1,
          "batch_size": 64, "optimiser": {"lr": 1e-3}}
PARTS = ["mimssl", "conf", "nbs", "tests/support", ".dvc", ".dvcignore", ".gitignore", "data.dvc",
         "dvc.yaml", "params.yaml", "pyproject.toml", "settings.ini"]


def example() -> list[str]:
    "The cells of the example: imports, and options with class."
    cells = json.loads((ROOT / "nbs/methods/method.ipynb").read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells]
    return [next(s for s in sources if s.startswith(start))
            for start in ("# what the notebook of SimMIM would export", "# ... its options")]


def run(home: Path, *argv, **env) -> str:
    "Output of a command in `home`, which succeeds."
    done = subprocess.run([str(a) for a in argv], cwd=home, env=environment(**env), text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the project, under git."
    home = tmp_path_factory.mktemp("copy")
    listed = run(ROOT, "git", "ls-files", "-co", "--exclude-standard", *PARTS).splitlines()
    for name in listed:
        if not (ROOT / name).is_file(): continue
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, home / name)
    run(home, "git", "init", "-q")
    run(home, "git", "add", "-A")
    run(home, "git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "before")
    return home


def stages(home: Path) -> dict[str, str]:
    "Stage of the study -> a hash of the project's files that it depends on."
    code = """
import hashlib, json
from pathlib import Path
from dvc.repo import Repo
found = {}
for stage in Repo(".").index.stages:
    files = [Path(d.def_path) for d in stage.deps if d.def_path.startswith(("mimssl/", "nbs/"))]
    found[stage.addressing] = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files)))
print(json.dumps({name: h.hexdigest() for name, h in found.items()}))
"""
    return json.loads(run(home, sys.executable, "-c", code).splitlines()[-1])


def add(home: Path):
    "The two things that a person writes: a notebook and a recipe."
    sources = ["#| default_exp methods.simmim", *(f"#| export\n{s}" for s in example())]
    title = "# SimMIM\n\n> Small."
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": title}]
    cells += [{"cell_type": "code", "id": f"cell{i}", "metadata": {}, "outputs": [],
               "execution_count": None, "source": s} for i, s in enumerate(sources)]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (home / "nbs/methods/simmim.ipynb").write_text(json.dumps(notebook))
    file = home / "conf/profile/smoke.yaml"
    profile = yaml.safe_load(file.read_text())
    profile["recipes"]["simmim"] = RECIPE
    for names in ("recipes", "evaluated"): profile["study"][names].append("simmim")
    header = "".join(line for line in file.read_text().splitlines(True) if line.startswith("# @"))
    file.write_text(header + yaml.safe_dump(profile, sort_keys=False))


def test_one_notebook_and_one_recipe(copy):
    here = {"PYTHONPATH": f"{copy}:{copy / 'tests'}"}
    before = stages(copy)
    contract = hashlib.sha256((copy / "mimssl/methods/method.py").read_bytes()).hexdigest()
    add(copy)
    run(copy, sys.executable, "-c", "from nbdev.export import nb_export\n"
        "nb_export('nbs/methods/simmim.ipynb', 'mimssl')", **here)
    run(copy, sys.executable, "-m", "mimssl.data.study", "compose", "smoke", **here)
    run(copy, sys.executable, "-m", "support.deps", **here)
    status = run(copy, "git", "status", "--porcelain", "-uall").splitlines()
    assert {line[3:] for line in status} - {"mimssl/_modidx.py"} == {
        "conf/profile/smoke.yaml", "params.yaml", "nbs/methods/simmim.ipynb",
        "mimssl/methods/simmim.py"}, "the last is exported, params.yaml is composed"
    after = stages(copy)
    assert set(after) - set(before) == {"pretrain@simmim-0", "evaluate@simmim-0"}
    assert {name for name in before if after[name] != before[name]} == set(), "others are stale"
    assert hashlib.sha256(
        (copy / "mimssl/methods/method.py").read_bytes()).hexdigest() == contract
    found = run(copy, sys.executable, "-c",
                "from mimssl.methods.method import tiny_forms, method_names\n"
                "from mimssl.report.groups import look_of\n"
                "print('simmim' in method_names(), tiny_forms('simmim'), look_of('simmim'))",
                **here)
    assert found.startswith("True {'': {'mask_ratio': 0.5}} Look(label='simmim'")


def test_it_trains(copy, tmp_path):
    if not (copy / "mimssl/methods/simmim.py").is_file(): pytest.skip("was not added")
    home = make_study(tmp_path, simmim={"method": "simmim", "options": {}, "epochs": 2})
    run(home, sys.executable, "-m", "mimssl", "pretrain", "--recipe", "simmim",
        PYTHONPATH=str(copy))
    assert (home / "outputs/pretrain/simmim-s0/encoder.safetensors").is_file()


def test_a_method_of_another_package(tmp_path):
    package = tmp_path / "elsewhere/my_methods"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "simple.py").write_text("\n\n".join(example()))
    home = make_study(tmp_path / "study",
                      own={"method": "my_methods.simple:SimMIM", "options": {}, "epochs": 2})
    path = f"{ROOT}:{package.parent}"
    command = [sys.executable, "-m", "mimssl", "pretrain", "--recipe", "own"]
    run(home, *command, PYTHONPATH=path)
    about = json.loads((home / "outputs/pretrain/own-s0/recipe.json").read_text())
    assert about["recipe"]["method"] == "my_methods.simple:SimMIM"
    assert about["recipe"]["options"] == {"mask_ratio": .6, "crop_scale": [.67, 1.]}
    wrong = subprocess.run([*command, "--set", "method=my_methods.simple:Sim"], cwd=home, text=True,
                           env=environment(PYTHONPATH=path), capture_output=True)
    assert wrong.returncode == 1 and "no subclass of Method named Sim; define it" in wrong.stderr
