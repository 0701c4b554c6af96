"""Which modules of mimssl a stage uses, derived from the imports of its notebook; `python -m
tests.support.deps` writes them into dvc.yaml.
"""
import ast, json, re
from functools import cache
from pathlib import Path
import yaml
from . import ROOT

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
PROFILES = [yaml.safe_load(path.read_text())
            for path in sorted((ROOT / "conf/profile").glob("*.yaml"))]
STAGES = {name: stage.get("do", stage)
          for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()}


def module_file(name: str) -> Path | None:
    "The file of the module `name` of mimssl, or None."
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def imported(source: str, package: tuple[str, ...] = ()) -> set[Path]:
    "Files of the mimssl modules that Python `source` imports, anywhere in it."
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[:len(package) - node.level + 1],
                             *filter(None, [node.module]))) if node.level else node.module
            names |= {base, *(f"{base}.{a.name}" for a in node.names)}
    return {f for n in names if n.startswith("mimssl.") and (f := module_file(n))}


@cache
def closure(path: Path) -> frozenset[Path]:
    "`path` and every mimssl module that it imports, directly or not."
    found, todo = set(), [path]
    while todo:
        f = todo.pop()
        if f in found: continue
        found.add(f)
        todo += imported(f.read_text(), f.relative_to(ROOT).parts[:-1])
    return frozenset(found)


def used_by(notebook: Path, also: tuple[Path, ...] = ()) -> set[str]:
    "Paths, relative to the project, of all modules that a notebook (and the files `also`) uses."
    cells = json.loads(notebook.read_text())["cells"]
    direct = set(also).union(*(imported("".join(c["source"]))
                               for c in cells if c["cell_type"] == "code"))
    found = {f for d in direct for f in closure(d)}
    if ROOT / "mimssl/evaluation/suite.py" in found:
        found |= {f for e in evaluation_files() for f in closure(e)}
    return {str(f.relative_to(ROOT)) for f in found}


def method_file(recipe: str) -> Path:
    """The file of a recipe's method, which is imported by name.

    The stages of the study know a method by its file in mimssl/methods, so one of another package
    has a module there that imports it.
    """
    method = PARAMS["recipes"][recipe]["method"]
    from mimssl.methods.method import ABOVE
    file = module_file(ABOVE.get(method, f"mimssl.methods.{method}").split(":")[0])
    assert file, f"recipe '{recipe}': method '{method}' is no module of mimssl/methods"
    return file


def evaluation_files() -> set[Path]:
    "The files of the evaluations that the study or the sweeps of a profile name."
    from mimssl.evaluation.suite import evaluations
    suites = [p["study"].get("suite") for p in PROFILES if "study" in p]
    suites += [sweep.get("suite") for p in PROFILES for sweep in (p.get("sweeps") or {}).values()]
    names = {name for suite in suites if isinstance(suite, dict) for name in suite}
    return {module_file(evaluations()[name].function.__module__) for name in names}


def recipes_of(stage: str) -> list[str]:
    """The recipes that a stage trains: those of the study or of the sweeps of all profiles, or the
    one that its command names.
    """
    words = STAGES[stage]["cmd"].split()
    given = {words[i + 1]: words[i + 2] for i, w in enumerate(words) if w == "-p"}
    if "sweep" in given:
        return sorted({sweep["recipe"] for profile in PROFILES
                       for sweep in (profile.get("sweeps") or {}).values() if "recipe" in sweep})
    recipe = given.get("recipe")
    if recipe != "${item.recipe}": return [recipe] if recipe else []
    listed = STAGES[stage]["matrix"]["recipe"]           # as '${study.recipes}'
    return PARAMS["study"][listed.removeprefix("${study.").removesuffix("}")]


def expected(stage: str) -> dict[str, set[str]]:
    "Recipe ('' where the stage trains none) -> the modules that the stage uses."
    notebook = ROOT / next(word for word in STAGES[stage]["cmd"].split()
                           if word.startswith("nbs/pipeline/"))
    return ({recipe: used_by(notebook, (method_file(recipe),)) for recipe in recipes_of(stage)}
            or {"": used_by(notebook)})


def declared(stage: str, recipe: str) -> set[str]:
    "The modules in the stage's `deps`."
    deps = (d.replace("${item.recipe}", recipe) for d in STAGES[stage]["deps"])
    return {d for d in deps if d.startswith("mimssl/")}


def with_deps(text: str) -> str:
    "The text of dvc.yaml with each stage's modules after its notebook in `deps`."
    parts = re.split(r"(?m)^(?=  \w+:)", text)
    for i, part in enumerate(parts):
        stage = part.strip().split(":")[0]
        if stage not in STAGES: continue
        own = "mimssl/methods/${item.recipe}.py"
        # each recipe of the study depends on its own method's file alone
        apart = own in STAGES[stage]["deps"]
        modules = set().union(
            *(m - ({str(method_file(recipe).relative_to(ROOT))} if apart else set())
              for recipe, m in expected(stage).items()), {own} if apart else set())
        part = re.sub(r" +- mimssl/.*\n", "", part)
        records = lambda indent: "".join(f"{indent}- {m}\n" for m in sorted(modules))
        parts[i] = re.sub(r"( +)(- nbs/pipeline/\w+\.ipynb\n)",
                          lambda m: m.group(0) + records(m.group(1)), part, count=1)
    return "".join(parts)


if __name__ == "__main__":
    path = ROOT / "dvc.yaml"
    path.write_text(with_deps(path.read_text()))
