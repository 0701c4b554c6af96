"""Sphinx extension of the book (`nbs/_config.yml`): what nbdev knows of a notebook and jupyter-book does not.

While a notebook is read, `#|` lines leave the code, and an emphasised paragraph right below a picture
(`*What the picture shows.*`) becomes its caption and its text for those who do not see it.
Formulas are drawn by a copy of MathJax inside the book, so that a page needs no network.
"""
import importlib, json, re
from pathlib import Path

KEPT = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts", "ui", "a11y/assistive-mml.js")
PLAIN = ((r"\[([^]]*)\]\([^)]*\)", r"\1"), (r"[*`$\\{}]", ""), (r"\s+", " "))    # Markdown -> text


def plain(text: str) -> str:
    "Markdown without its marks."
    for pattern, to in PLAIN: text = re.sub(pattern, to, text)
    return text.strip()


def draws(cell: dict) -> bool: return any(k.startswith("image/") for out in cell.get("outputs", []) for k in out.get("data", {}))


def caption_of(cell: dict | None) -> str | None:
    "The text of a cell that is one emphasised paragraph."
    text = "".join(cell["source"]).strip() if cell and cell["cell_type"] == "markdown" else ""
    whole = re.fullmatch(r"\*(?!\*)(.+)(?<!\*)\*", text, re.S)
    return " ".join(whole[1].split()) if whole and "\n\n" not in text else None


def heading_of(cell: dict) -> str | None:
    "The last heading of a Markdown cell."
    found = re.findall(r"^#+ +(.+)$", "".join(cell["source"]), re.M) if cell["cell_type"] == "markdown" else []
    return plain(found[-1]) if found else None


def prepared(notebook: dict) -> dict:
    "A notebook as the book shows it: no directives, captions at their pictures."
    cells, heading = [], ""
    following = [*notebook["cells"][1:], None]
    captions = set()
    for i, (cell, after) in enumerate(zip(notebook["cells"], following)):
        heading = heading_of(cell) or heading
        if i in captions: continue
        if cell["cell_type"] == "code":
            code = re.sub(r"\A(?:#\|.*(?:\n|\Z))+\n*", "", "".join(cell["source"]))
            cell = cell | {"source": code}
            options = {"code_prompt_show": "Show the drawing code" if draws(cell) else "Show the tests"}
            if draws(cell):
                caption = caption_of(after)
                options["image"] = {"alt": plain(caption or f"Figure: {heading}")}
                if caption:
                    options["figure"] = {"caption": caption}
                    captions.add(i + 1)
            cell["metadata"] = cell.get("metadata", {}) | {"mystnb": options}
        cells.append(cell)
    return notebook | {"cells": cells}


def read(app, docname: str, content: list[str]) -> None:
    "Called for each page before it is parsed."
    if str(app.env.doc2path(docname)).endswith(".ipynb"): content[0] = json.dumps(prepared(json.loads(content[0])))


def copy_mathjax(app, failed) -> None:
    "The part of MathJax that TeX in HTML needs, 3 of 24 MB."
    from sphinx.util.fileutil import copy_asset
    if failed or app.builder.format != "html": return
    home = Path(importlib.import_module("sphinx-mathjax-offline").__file__).parent / "static" / "mathjax"
    for name in KEPT:
        target = Path(app.outdir) / "_static" / "mathjax" / name
        copy_asset(home / name, target if (home / name).is_dir() else target.parent)


def drop_thebe(app, page, template, context, doctree) -> None:
    "jupyter-book always loads the scripts of live code, which need a server; they go."
    shown = lambda script: f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', '')}"
    context["script_files"] = [s for s in context.get("script_files", []) if "thebe" not in shown(s).lower()]


def setup(app) -> dict:
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("source-read", read)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
