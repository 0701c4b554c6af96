"The paper notebooks run, and their tables and conclusions are what the records say."
import nbformat, pytest
from pathlib import Path
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
PAPERS = sorted((ROOT / "nbs/papers").glob("*.ipynb"))


def rendered(notebook) -> dict[str, list[str]]:
    "Tables and text that each cell shows; pictures are compared by nobody."
    shown = {}
    for cell in notebook.cells:
        outputs = [out.data for out in cell.get("outputs", []) if "data" in out]
        texts = [data[k] for data in outputs for k in ("text/html", "text/markdown") if k in data]
        if texts: shown[cell.id] = texts
    return shown


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_conclusions_are_not_stale(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    committed, again = (nbformat.read(path, as_version=4) for _ in range(2))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(again, timeout=600, kernel_name="python3", resources=resources).execute()
    old, new = rendered(committed), rendered(again)
    stale = [cell for cell in {*old, *new} if old.get(cell) != new.get(cell)]
    assert not stale, f"{path.name}, cells {stale}: other than the records say; make figures"
