"""Tags, kernel and execution of the notebooks.

    python tools/notebooks.py tag                        # tags and kernel, of all or of those named
    python tools/notebooks.py check                      # exit code 1 where `tag` would change one
    python tools/notebooks.py run nbs/methods/mae.ipynb  # execute, keep outputs, clean, tag

The book folds or leaves out cells by their tags. A tag follows from the cell itself:

    #| default_exp, #| hide, imports to export             remove-cell    not in the book
    #| echo: false                                         remove-input   the output alone
    #| code-fold: true, a wall of tests, long code of a    hide-input     folded, one click away
    figure or table

In `nbs/papers/`, which are read for what they show, the code of every figure and table is folded.
"""
import argparse, ast, json, os, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
OURS = {"remove-cell", "remove-input", "hide-input"}
WALL, DRAWING = 5, 6   # lines from which tests, and code of a figure, are folded
TESTS = ("test_", "expect_fail", "check_", "assert_", "ExceptionExpected", "raises")


def notebooks() -> list[Path]:
    "All notebooks of the workbook."
    found = (ROOT / "nbs").rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


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
    inside = list(ast.walk(node))
    calls = (n.func for n in inside if isinstance(n, ast.Call))
    names = [getattr(f, "id", getattr(f, "attr", "")) for f in calls]
    return any(n.startswith(TESTS) for n in names) or any(isinstance(n, ast.Assert) for n in inside)


def lines_of(nodes: list[ast.stmt]) -> int: return sum(n.end_lineno - n.lineno + 1 for n in nodes)


def draws(cell: dict) -> bool:
    "Whether a picture, a table or rendered text is among the outputs."
    kinds = [kind for out in cell.get("outputs", []) for kind in out.get("data", {})]
    return any(kind.startswith(("image/", "text/html", "text/markdown")) for kind in kinds)


def tag_of(cell: dict, read_only: bool = False) -> str | None:
    "The tag of a code cell; read_only: in a notebook that is read for its figures, not its code."
    source = "".join(cell["source"])
    said, body = directives(source), statements(source)
    exported = any(d.startswith("export") for d in said)
    if any(d == "hide" or d.startswith("default_exp") for d in said): return "remove-cell"
    imports = body and all(isinstance(n, ast.Import | ast.ImportFrom) for n in body)
    if exported and imports: return "remove-cell"
    if "echo: false" in said: return "remove-input"
    if "code-fold: true" in said: return "hide-input"
    if exported or "code-fold: false" in said: return None
    tests, lines = lines_of([n for n in body if is_test(n)]), lines_of(body)
    wall = tests >= WALL and 2 * tests >= lines
    return "hide-input" if wall or draws(cell) and (read_only or lines >= DRAWING) else None


def tagged(notebook: dict, read_only: bool = False) -> dict:
    "The notebook with our tags and the kernel; other tags stay."
    for cell in notebook["cells"]:
        about = cell.get("metadata", {})
        tags = [tag for tag in about.get("tags", []) if tag not in OURS]
        own = tag_of(cell, read_only) if cell["cell_type"] == "code" else None
        if own: tags.append(own)
        cell["metadata"] = {k: v for k, v in about.items() if k != "tags"}
        if tags: cell["metadata"]["tags"] = tags
    kept = {k: v for k, v in notebook["metadata"].items() if k not in ("kernelspec", "jupytext")}
    notebook["metadata"] = kept | {"kernelspec": KERNEL}
    return notebook


def text_of(notebook: dict) -> str:
    "As nbdev writes it."
    return json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def stale(paths: list[Path]) -> dict[Path, str]:
    "The notebooks that should read otherwise, and how."
    wanted = lambda p: text_of(tagged(json.loads(p.read_text()), p.parent.name == "papers"))
    return {path: text for path in paths if (text := wanted(path)) != path.read_text()}


def told(outputs: list[dict]) -> list[dict]:
    """Outputs without warnings, which name this machine's folders, and without progress bars;
    prints in one piece.
    """
    kept = []
    for out in outputs:
        if out.get("name") == "stderr" or any("widget" in kind for kind in out.get("data", {})):
            continue
        if kept and out.get("name") == kept[-1].get("name") == "stdout":
            kept[-1]["text"] = "".join(kept[-1]["text"]) + "".join(out["text"])
        else: kept.append(out)
    return kept


def run(path: Path) -> None:
    "Execute a notebook in its folder, with this checkout's library, and keep its outputs."
    import nbformat
    from nbclient import NotebookClient
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    notebook, folder = nbformat.read(path, as_version=4), {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=folder).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs = told(cell.outputs)
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)
    clean = Path(sys.executable).with_name("nbdev-clean")
    subprocess.run([clean, "--fname", path], check=True, cwd=ROOT)


def main() -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("task", choices=["tag", "check", "run"])
    parser.add_argument("notebooks", nargs="*", type=Path)
    asked = parser.parse_args()
    named = [path.resolve() for path in asked.notebooks if path.suffix == ".ipynb"]
    if asked.task == "run":
        if not named: parser.error("name the notebooks: make notebooks N=nbs/methods/mae.ipynb")
        for path in named:
            print(f"running {path.relative_to(ROOT)}", flush=True)
            run(path)
    found = stale(named if asked.notebooks else notebooks())
    for path, text in found.items():
        if asked.task != "check": path.write_text(text)
        word = "stale" if asked.task == "check" else "tagged"
        print(f"{word}: {path.relative_to(ROOT)}")
    return int(asked.task == "check" and bool(found))


if __name__ == "__main__": sys.exit(main())
