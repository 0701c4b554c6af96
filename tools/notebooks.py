"""Tags, kernel and execution of the notebooks.

    python tools/notebooks.py tag                      # tags and kernel of all notebooks (or of those named)
    python tools/notebooks.py check                    # exit code 1 and the names of notebooks that `tag` would change
    python tools/notebooks.py run nbs/methods/mae.ipynb    # execute, keep the outputs, clean, tag

The book folds or leaves out cells by their tags. A tag follows from the cell itself, so nobody sets one by hand:

    #| default_exp, #| hide, or nothing but imports to export    remove-cell     not in the book
    #| echo: false                                               remove-input    output only (a diagram drawn by code)
    #| code-fold: true; a wall of tests; long code of a figure   hide-input      folded, one click away

In `nbs/papers/`, which are read for what they show, the code of every figure and table is folded.
"""
import argparse, ast, json, os, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
OURS = {"remove-cell", "remove-input", "hide-input"}
WALL, DRAWING = 5, 6                    # lines from which a cell of tests, a cell that draws, is folded
TESTS = ("test_", "expect_fail", "check_", "assert_", "ExceptionExpected", "raises")


def notebooks() -> list[Path]:
    "All notebooks of the workbook."
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def directives(source: str) -> list[str]:
    "What stands behind `#|` at the head of a cell."
    lines = [line for line in source.splitlines() if line.strip()]
    head = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    return [line[2:].strip() for line in lines[:head]]


def statements(source: str) -> list[ast.stmt]:
    "The top level of a cell, without shell and magic lines; none where it is no Python."
    code = "\n".join(line for line in source.splitlines() if not line.startswith(("!", "%")))
    try: return ast.parse(code).body
    except SyntaxError: return []


def is_test(node: ast.stmt) -> bool:
    "Whether a statement asserts something, itself or inside."
    calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    names = [getattr(f, "id", getattr(f, "attr", "")) for f in calls]
    return any(name.startswith(TESTS) for name in names) or any(isinstance(n, ast.Assert) for n in ast.walk(node))


def lines_of(nodes: list[ast.stmt]) -> int: return sum(n.end_lineno - n.lineno + 1 for n in nodes)


def draws(cell: dict) -> bool:
    "Whether a picture or a table is among the outputs."
    return any(kind.startswith(("image/", "text/html")) for out in cell.get("outputs", []) for kind in out.get("data", {}))


def tag_of(cell: dict, read_only: bool = False) -> str | None:
    "The tag that a code cell should have; read_only: a notebook that is read for its figures, not for its code."
    source = "".join(cell["source"])
    said, body = directives(source), statements(source)
    exported = any(d.split(":")[0].split()[0] in ("export", "exporti", "exports") for d in said if d)
    if any(d == "hide" or d.startswith("default_exp") for d in said): return "remove-cell"
    if exported and body and all(isinstance(n, ast.Import | ast.ImportFrom) for n in body): return "remove-cell"
    if "echo: false" in said: return "remove-input"
    if "code-fold: true" in said: return "hide-input"
    if exported or "code-fold: false" in said: return None
    tests = [n for n in body if is_test(n)]
    wall = lines_of(tests) >= WALL and 2 * lines_of(tests) >= lines_of(body)
    return "hide-input" if wall or (draws(cell) and lines_of(body) >= (1 if read_only else DRAWING)) else None


def tagged(notebook: dict, read_only: bool = False) -> dict:
    "The notebook with our tags and the kernel; other tags stay."
    for cell in notebook["cells"]:
        old = cell.get("metadata", {}).get("tags", [])
        ours = [tag_of(cell, read_only)] if cell["cell_type"] == "code" else []
        tags = [t for t in old if t not in OURS] + [t for t in ours if t]
        cell["metadata"] = {k: v for k, v in cell.get("metadata", {}).items() if k != "tags"} | ({"tags": tags} if tags else {})
    notebook["metadata"] = {"kernelspec": KERNEL} | {k: v for k, v in notebook["metadata"].items() if k not in ("kernelspec", "jupytext")}
    return notebook


def text_of(notebook: dict) -> str:
    "As nbdev writes it."
    return json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def stale(paths: list[Path]) -> dict[Path, str]:
    "The notebooks that should read otherwise, and how."
    wanted = {path: text_of(tagged(json.loads(path.read_text()), path.parent.name == "papers")) for path in paths}
    return {path: text for path, text in wanted.items() if text != path.read_text()}


def run(path: Path) -> None:
    "Execute a notebook in its folder, with this checkout's library, and keep its outputs."
    import nbformat
    from nbclient import NotebookClient
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=folder).execute()
    nbformat.write(notebook, path)
    subprocess.run([Path(sys.executable).with_name("nbdev-clean"), "--fname", path], check=True, cwd=ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["tag", "check", "run"])
    parser.add_argument("notebooks", nargs="*", type=Path)
    asked = parser.parse_args()
    paths = [p.resolve() for p in asked.notebooks if p.suffix == ".ipynb"] if asked.notebooks else notebooks()
    if asked.task == "run":
        if not asked.notebooks: parser.error("name the notebooks to run: make notebooks N=nbs/methods/mae.ipynb")
        for path in paths: print(f"running {path.relative_to(ROOT)}"); run(path)
    found = stale(paths)
    for path, text in found.items():
        if asked.task != "check": path.write_text(text)
        print(f"{'stale' if asked.task == 'check' else 'tagged'}: {path.relative_to(ROOT)}")
    return int(asked.task == "check" and bool(found))


if __name__ == "__main__": sys.exit(main())
