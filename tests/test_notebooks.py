"Notebooks as the book shows them: tags follow from the cells, figures have captions."
import json, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import book, notebooks as tool


def code(source: str, *outputs: str, tags=()) -> dict:
    outs = [{"output_type": "display_data", "data": {kind: "x"}, "metadata": {}}
            for kind in outputs]
    return {"cell_type": "code", "id": "0", "source": source, "outputs": outs,
            "metadata": {"tags": list(tags)} if tags else {}}


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "id": "1", "source": source, "metadata": {}}


TESTS = "\n".join(f"test_eq(f({i}), {i})" for i in range(5))
DRAWING = "fig, ax = plt.subplots()\n" + "\n".join(f"ax.plot([0, {i}])" for i in range(5))


@pytest.mark.parametrize("source, outputs, tag", [
    ("#| default_exp methods.mae", (), "remove-cell"),
    ("#| hide\nimport torch\ntest_eq(1, 1)", (), "remove-cell"),
    ("#| export\nimport torch\nfrom a import b", (), "remove-cell"),
    ("#| export\nimport torch\nX = 1", (), None),
    ("import torch", (), None),                               # imports of an example belong to it
    ("#| echo: false\ndraw_flow(mae)", ("image/png",), "remove-input"),
    ("#| code-fold: true\nx = 1", (), "hide-input"),
    (TESTS, (), "hide-input"),
    ("\n".join(TESTS.splitlines()[:4]), (), None),            # a few tests teach
    ("#| export\n" + TESTS, (), None),
    (TESTS + "\n" + "\n".join(f"x{i} = {i}" for i in range(7)), (), None),   # mostly no tests
    ("with ExceptionExpected(BadInput):\n" + "    f()\n" * 5, (), "hide-input"),
    ("for n in range(3):\n    x = n\n    y = n\n    z = n\n    assert x == y", (),
     "hide-input"),
    (DRAWING, ("image/png", "text/plain"), "hide-input"),
    (DRAWING, (), None),
    ("image_grid(pictures)", ("image/png",), None),
    ("#| code-fold: false\n" + DRAWING, ("image/png",), None),
    ("!ls\n%timeit x\n" + TESTS, (), "hide-input"),
])
def test_a_tag_follows_from_the_cell(source, outputs, tag):
    assert tool.tag_of(code(source, *outputs)) == tag


def test_notebooks_of_figures_show_no_code():
    assert tool.tag_of(code("table()", "text/html"), read_only=True) == "hide-input"
    assert tool.tag_of(code("table()", "text/html")) is None


def test_other_tags_stay():
    cells = [code("x = 1", tags=["parameters", "hide-input"]), markdown("text")]
    after = tool.tagged({"cells": cells, "metadata": {"jupytext": {}, "doc": 1}})
    assert [c["metadata"] for c in after["cells"]] == [{"tags": ["parameters"]}, {}]
    assert after["metadata"] == {"kernelspec": tool.KERNEL, "doc": 1}


def test_tags_and_directives_agree():
    stale = [str(path.relative_to(ROOT)) for path in tool.stale(tool.notebooks())]
    assert not stale, f"run `python tools/notebooks.py tag`; it changes {', '.join(stale)}"


def test_captions_and_directives_in_the_book():
    plot = lambda: code("plot()", "image/png")
    cells = [markdown("## A part"), code("#| export\n#| foo: 1\n\nx = 1\n#| y"),
             plot(), markdown("*A [map](a.ipynb) of $x$.*"), plot(), markdown("*Two* words."),
             code(TESTS), code("table()", "text/html")]
    shown = book.prepared({"cells": cells, "metadata": {}})["cells"]
    assert [c["cell_type"][0] for c in shown] == [*"mcccmcc"]
    assert shown[1]["source"] == "x = 1\n#| y"
    about = [c["metadata"].get("mystnb") for c in shown]
    assert about[2] == {"code_prompt_show": "Show the drawing code",
                        "image": {"alt": "A map of x."},
                        "figure": {"caption": "A [map](a.ipynb) of $x$."}}
    assert about[3]["image"] == {"alt": "Figure: A part"} and "figure" not in about[3]
    assert [a["code_prompt_show"] for a in about[5:]] == ["Show the tests", "Show the code"]


def test_wide_pictures_scroll_on_a_phone():
    import base64, struct
    png = lambda *size: base64.b64encode(b"0" * 16 + struct.pack(">II", *size) + b"0" * 9).decode()
    drawn = lambda *size: {"outputs": [{"data": {"image/png": png(*size)}}]}
    assert [book.is_wide(drawn(w, 200)) for w in (400, 500, 501)] == [False, False, True]
    assert not book.is_wide({"outputs": [{"text": "x"}]})


def figures_without_caption(path: Path) -> list[str]:
    "Ids of the cells that draw and have no caption below."
    cells = json.loads(path.read_text())["cells"]
    return [cell["id"] for cell, after in zip(cells, [*cells[1:], None])
            if cell["cell_type"] == "code" and book.draws(cell) and not book.caption_of(after)]


@pytest.mark.parametrize("path", tool.notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_figures_have_captions(path):
    bare = figures_without_caption(path)
    assert not bare, f"cells {bare}: an emphasised paragraph below a figure is its caption"


def test_outputs_without_warnings_and_bars():
    say = lambda name, text: {"output_type": "stream", "name": name, "text": text}
    bar = {"data": {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"}}
    outputs = [say("stdout", "a\n"), say("stderr", "here"), say("stdout", "b\n"), bar, {"data": {}}]
    assert tool.told(outputs) == [say("stdout", "a\nb\n"), {"data": {}}]


@pytest.mark.parametrize("path", tool.notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_progress_bar_is_kept(path):
    "They are widgets, which the book does not load."
    assert "vnd.jupyter.widget" not in path.read_text()
