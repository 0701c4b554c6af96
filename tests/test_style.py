"How the code reads: the linter's rules, the length of cells and lines, sharp figures."
import json, re, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb")
                   if ".ipynb_checkpoints" not in p.parts)
LONGEST = 40


def exported_lengths(path: Path) -> dict[str, int]:
    "Lines of each exported cell, without its directives."
    lengths = {}
    for cell in json.loads(path.read_text())["cells"]:
        lines = "".join(cell["source"]).splitlines()
        exported = any(re.match(r"#\| *exports?\b", line) for line in lines)
        if cell["cell_type"] != "code" or not exported: continue
        lengths[cell["id"]] = sum(not line.startswith("#|") for line in lines)
    return lengths


def test_ruff():
    program = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if program is None: pytest.skip("the program ruff is not installed")
    command = [program, "check", "--no-cache", "--output-format", "concise", "."]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, f"ruff check:\n{found.stdout[-4000:]}{found.stderr[-1000:]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_exported_cells_fit_a_screen(path):
    long = {cell: n for cell, n in exported_lengths(path).items() if n > LONGEST}
    assert not long, f"longer than {LONGEST} lines (cell: lines), split them: {long}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_lines_of_the_guides(name):
    wide = [line for line in (ROOT / name).read_text().splitlines()
            if len(line) >= 120 and not line.startswith("|")]
    assert not wide, f"{name} has lines of 120 columns or more: {wide}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_figures_are_sharp(path):
    "The one style sets the resolution; no notebook lowers it."
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    low = [n for n in re.findall(r"\bdpi\"?\]?\s*=\s*(\d+)", code) if int(n) < 144]
    assert not low, f"{path.name} sets {low} dots per inch; mimssl.report.figures.style does it"
