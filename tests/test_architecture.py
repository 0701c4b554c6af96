"""What holds for the house as a whole: arrows point down, nothing unpickles, nothing names a
machine, every notebook has its place.
"""
import ast, importlib, json, re, subprocess, sys, tomllib
from fnmatch import fnmatch
from pathlib import Path
import pytest, yaml
from mimssl.methods.method import Method
from support import ROOT

MODULES = sorted(p for p in (ROOT / "mimssl").rglob("*.py")
                 if p.name not in ("__init__.py", "_modidx.py"))
NOTEBOOKS = sorted(p
                   for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MAY_IMPORT = {"data": {"data"}, "parts": {"data", "parts"}, "methods": {"data", "parts", "methods"},
              "training": {"data", "parts", "methods", "training"},
              "evaluation": {"data", "parts", "evaluation"}, "report": {"data", "report"},
              "detector": {"data", "parts", "methods", "training", "detector"}}
LIBRARIES = {"torch", "torchvision", "timm", "accelerate", "safetensors", "numpy", "scipy",
             "sklearn", "PIL", "yaml", "tqdm", "mimssl"}


def imports(path: Path, top_only=False) -> set[str]:
    "Absolute names of all modules that a file imports."
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text())
    found = set()
    for node in (tree.body if top_only else ast.walk(tree)):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (".".join((
                *package[:len(package) - node.level + 1], *([node.module] if node.module else [])))
                    if node.level else node.module)
            found |= {base, *(f"{base}.{a.name}" for a in node.names)}
    return found


def tracked() -> list[Path]:
    "Files that git knows or would add."
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout
    return [ROOT / n for n in sorted(set(names.splitlines())) if (ROOT / n).is_file()]


def text_of(path: Path) -> str:
    "What a person reads in a file: of a notebook its sources and text outputs, not its pictures."
    if path.suffix != ".ipynb": return path.read_text(errors="replace")
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        parts.append("".join(cell["source"]))
        for out in cell.get("outputs", []):
            parts += [
                "".join(out.get("text", "")),
                *("".join(v) for k, v in out.get("data", {}).items() if k.startswith("text/"))]
    return "\n".join(parts)


MARKER = re.compile(r"^\s*\"?(<{7}|>{7}|\|{7}|={7})( |\\n|\"|$)", re.MULTILINE)


def test_no_conflict_is_left():
    "No file holds the marks of an unfinished merge; in notebooks they stand inside of quotes."
    for mark in ("<" * 7 + " ours", "=" * 7, ">" * 7 + " theirs", "|" * 7 + " base"):
        assert MARKER.search(f"x = 1\n{mark}\ny") and MARKER.search(json.dumps([mark + "\n"],
                                                                            indent=1))
    assert not MARKER.search("| a |\n" + "=" * 30 + "\nx " + "<" * 7 + " y")
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data[:8192]: continue                # a picture, or another file of bytes
        found = MARKER.search(data.decode(errors="replace"))
        assert not found, f"{path.relative_to(ROOT)} has a conflict: {found[0]!r}"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_down(room):
    for path in MODULES:
        if path.parent.name != room: continue
        used = {name.split(".")[1] for name in imports(path) if name.startswith("mimssl.")}
        assert used <= MAY_IMPORT[room], (
            f"{path.relative_to(ROOT)} imports {used - MAY_IMPORT[room]}; {room} may import only "
            f"{MAY_IMPORT[room]}")


@pytest.mark.parametrize("name", [p.stem for p in MODULES if p.parent.name == "methods"])
def test_a_method_takes_from_another_what_it_extends(name):
    "What several methods need is a part; a method imports another only to subclass it."
    module = importlib.import_module(f"mimssl.methods.{name}")
    bases = {base.__module__ for cls in vars(module).values()
             if isinstance(cls, type) and issubclass(cls, Method) for base in cls.__mro__
             if cls.__module__ == module.__name__}
    used = {".".join(found.split(".")[:3]) for found in imports(Path(module.__file__))
            if found.startswith("mimssl.methods.")}
    extra = used - bases - {"mimssl.methods.method"}
    assert not extra, f"{name} imports {extra} without subclassing; move what it needs to parts"


def test_report_needs_no_torch():
    names = [f"mimssl.report.{p.stem}" for p in MODULES if p.parent.name == "report"]
    code = (f"import importlib, sys\nfor n in {names}: importlib.import_module(n)\n"
            f"sys.exit('torch' in sys.modules)")
    assert names and subprocess.run([sys.executable, "-c", code],
                                    cwd=ROOT).returncode == 0, "mimssl.report imports torch"


def test_library_needs_torch_and_timm_only():
    for path in MODULES:
        allowed = LIBRARIES | set(sys.stdlib_module_names) | (
            {"matplotlib", "seaborn"} if path.parent.name == "report" else set())
        used = {name.split(".")[0] for name in imports(path, top_only=True)}
        assert used <= allowed, (f"{path.relative_to(ROOT)} imports {used - allowed} at its top; "
                                 f"import it in the function that needs it")


def code_of(path: Path) -> str:
    "The Python of a module or of a notebook's code cells, without shell and magic records."
    if path.suffix == ".py": return path.read_text()
    cells = ["".join(c["source"])
             for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    return "\n".join(line for cell in cells if not cell.startswith("%%")
                     for line in cell.splitlines() if not line.startswith(("!", "%")))


def test_nothing_unpickles():
    for path in [*MODULES, *NOTEBOOKS, *sorted((ROOT / "tests").rglob("*.py"))]:
        name, tree = path.relative_to(ROOT), ast.parse(code_of(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and path in MODULES:
                assert not {a.name for a in node.names} & {
                    "pickle", "joblib", "dill"}, f"{name} imports a pickler"
            if not isinstance(node, ast.Call): continue
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") is True, (
                    f"{name}: torch.load without weights_only=True")
            assert given.get("allow_pickle") is not True, f"{name} allows pickles"


def test_no_machine_is_named():
    folders = "|".join(("work", "tmp", "root", r"home/\w+", r"Users/\w+", "mnt"))
    hosts = "|".join(("pypi" + r"\.org", "python" + "hosted", "anaconda" + r"\.org",
                      "download" + r"\.pytorch"))
    pattern = re.compile(rf"(?<![\w.~$}}>:/-])/(?:{folders})/|{hosts}")
    texts = {p.relative_to(ROOT): text_of(p) for p in tracked() if p.stat().st_size < 5_000_000
             and p.suffix not in (".png", ".pdf", ".jpg")}
    found = {str(p): text[max(0, hit.start() - 40):hit.end() + 40]
             for p, text in texts.items() if (hit := pattern.search(text))}
    assert not found, f"these files name a path or host of a machine: {found}"


def test_every_module_is_a_notebook():
    for path in MODULES:
        if path.name == "__main__.py" and path.parent.name == "mimssl": continue
        notebook = ROOT / "nbs" / path.relative_to(ROOT / "mimssl").with_suffix(".ipynb")
        assert notebook.is_file(), (f"{path.relative_to(ROOT)} has no notebook "
                                    f"{notebook.relative_to(ROOT)}")


def test_the_book_has_every_notebook():
    toc = yaml.safe_load((ROOT / "nbs/_toc.yml").read_text())
    chapters = [c for part in toc["parts"] for c in part["chapters"]]
    listed = [c["file"] for c in chapters if "file" in c]
    globs = [c["glob"] for c in chapters if "glob" in c]
    present = [str(p.relative_to(ROOT).with_suffix("")) for p in NOTEBOOKS]
    listed += [p for p in present if p not in listed and any(fnmatch(p, g) for g in globs)]
    assert sorted(listed) == sorted(present), (
        f"nbs/_toc.yml: add {set(present) - set(listed)}, remove {set(listed) - set(present)}")


def test_requirements_are_pinned():
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines()
                if line and not line.startswith("#"))
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lock.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    from packaging.requirements import Requirement
    for record in [*project["dependencies"], *project["optional-dependencies"]["study"]]:
        need = Requirement(record)
        version = pins.get(re.sub(r"[-_.]+", "-", need.name).lower())
        assert version and need.specifier.contains(version, prereleases=True), (
            f"requirements.lock has {need.name}=={version}, pyproject.toml wants {record}")


def test_modules_define_what_they_use():
    "A name that only a notebook's own cells import would be missing in the exported module."
    import builtins, dis, types

    def codes(code):
        yield code
        for const in code.co_consts:
            if isinstance(const, types.CodeType): yield from codes(const)

    for path in sorted((ROOT / "mimssl").rglob("*.py")):
        if path.name in ("__main__.py", "_modidx.py"): continue
        module = importlib.import_module(".".join(
            path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        used = {i.argval for c in codes(compile(path.read_text(), str(path), "exec"))
                for i in dis.get_instructions(c) if i.opname == "LOAD_GLOBAL"}
        missing = {n for n in used if n not in vars(module) and not hasattr(builtins, n)}
        assert not missing, f"{path.relative_to(ROOT)} uses {missing} without importing it"
