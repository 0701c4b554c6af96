"""Sphinx extension of the book (`nbs/_config.yml`): what nbdev knows of a notebook and jupyter-book
does not.

While a notebook is read, `#|` lines leave the code, and an emphasised paragraph right below a
picture (`*What it shows.*`) becomes its caption, and its text for those who do not see it.
Formulas are drawn by a copy of MathJax inside the book, so that a page needs no network. A pattern
in the table of contents lists the pages that are not named there already.
"""
import base64, importlib, json, re, struct
from pathlib import Path

# the part of MathJax that draws TeX in HTML: 3 of 24 MB
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts", "ui",
           "a11y/assistive-mml.js")
PLAIN = ((r"\[([^]]*)\]\([^)]*\)", r"\1"), (r"[*`$\\{}]", ""), (r"\s+", " "))   # Markdown -> text


def plain(text: str) -> str:
    "Markdown without its marks."
    for pattern, to in PLAIN: text = re.sub(pattern, to, text)
    return text.strip()


def draws(cell: dict) -> bool:
    "Whether a picture is among the outputs."
    kinds = [kind for out in cell.get("outputs", []) for kind in out.get("data", {})]
    return any(kind.startswith("image/") for kind in kinds)


def is_wide(cell: dict, times: float = 2.5) -> bool:
    "Whether a picture is wider than so many times its height: on a phone it scrolls by itself."
    found = ["".join(out.get("data", {}).get("image/png", "")) for out in cell.get("outputs", [])]
    heads = [base64.b64decode(png[:32]) for png in found if len(png) > 32]   # 24 bytes
    sizes = [struct.unpack(">II", head[16:]) for head in heads]
    return any(w > times * h for w, h in sizes)


def caption_of(cell: dict | None) -> str | None:
    "The text of a cell that is one emphasised paragraph."
    markdown = cell is not None and cell["cell_type"] == "markdown"
    text = "".join(cell["source"]).strip() if markdown else ""
    whole = re.fullmatch(r"\*(?!\*)(.+)(?<!\*)\*", text, re.S)
    return " ".join(whole[1].split()) if whole and "\n\n" not in text else None


def heading_of(cell: dict) -> str | None:
    "The last heading of a Markdown cell."
    if cell["cell_type"] != "markdown": return None
    found = re.findall(r"^#+ +(.+)$", "".join(cell["source"]), re.M)
    return plain(found[-1]) if found else None


def prepared(notebook: dict) -> dict:
    "A notebook as the book shows it: no directives, captions at their pictures."
    cells, heading, caption = [], "", None
    for cell, after in zip(notebook["cells"], [*notebook["cells"][1:], None]):
        heading, is_caption = heading_of(cell) or heading, caption is not None
        caption = caption_of(after) if cell["cell_type"] == "code" and draws(cell) else None
        if is_caption: continue
        if cell["cell_type"] == "code": cell = shown(cell, caption, heading)
        cells.append(cell)
    return notebook | {"cells": cells}


def prompt(cell: dict, source: str) -> str:
    "What a reader may unfold: code of a picture, tests, or other code."
    tests = re.search(r"\b(assert\b|test_\w+\(|ExceptionExpected|expect_fail)", source)
    return f"Show the {'drawing code' if draws(cell) else 'tests' if tests else 'code'}"


def shown(cell: dict, caption: str | None, heading: str) -> dict:
    "A code cell without directives, with what myst-nb should know of its outputs."
    source = re.sub(r"\A(?:#\|.*(?:\n|\Z))+\n*", "", "".join(cell["source"]))
    options = {"code_prompt_show": prompt(cell, source)}
    if draws(cell): options["image"] = {"alt": plain(caption or f"Figure: {heading}")}
    if is_wide(cell): options["image"]["classes"] = "wide"
    if caption: options["figure"] = {"caption": caption}
    return cell | {"source": source, "metadata": cell.get("metadata", {}) | {"mystnb": options}}


def read(app, docname: str, content: list[str]) -> None:
    "Called for each page before it is parsed."
    if str(app.env.doc2path(docname)).endswith(".ipynb"):
        content[0] = json.dumps(prepared(json.loads(content[0])))


def list_once(app, env, docnames: list[str]) -> None:
    "A pattern in the table of contents stands for the pages that have no place of their own."
    from sphinx.util.matching import patfilter
    from sphinx_external_toc.api import Document, FileItem, GlobItem
    pages = env.external_site_map
    for tree in [tree for page in list(pages.values()) for tree in page.subtrees]:
        items, tree.items = tree.items, []
        for item in items:
            fits = patfilter(env.found_docs, item) if isinstance(item, GlobItem) else []
            found = sorted(name for name in fits if name not in pages)
            pages.update((name, Document(name)) for name in found)
            tree.items += map(FileItem, found) if isinstance(item, GlobItem) else [item]


def copy_mathjax(app, failed) -> None:
    "The files of `MATHJAX` into the book."
    from sphinx.util.fileutil import copy_asset
    if failed or app.builder.format != "html": return
    package = importlib.import_module("sphinx-mathjax-offline")
    home = Path(package.__file__).parent / "static" / "mathjax"
    for name in MATHJAX:
        target = Path(app.outdir) / "_static" / "mathjax" / name
        copy_asset(home / name, target if (home / name).is_dir() else target.parent)


def drop_thebe(app, page, template, context, doctree) -> None:
    "jupyter-book always loads the scripts of live code, which need a server; they go."
    def is_thebe(script):
        about = getattr(script, "filename", script), getattr(script, "attributes", "")
        return "thebe" in str(about).lower()
    context["script_files"] = [s for s in context.get("script_files", []) if not is_thebe(s)]


def setup(app) -> dict:
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("env-before-read-docs", list_once)
    app.connect("source-read", read)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
