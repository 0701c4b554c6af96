"Pages of the book in a browser, opened as files with the network off, at laptop and phone width."
import json, subprocess, sys
from pathlib import Path
import pytest
from support.chromium import Chromium, find_chromium

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README", "nbs/methods/mae", "nbs/methods/moca", "nbs/papers/moca"]
WIDTHS = {"laptop": 1366, "phone": 390}

pytest.importorskip("websocket", reason="the package websocket-client drives the browser")
pytest.importorskip("jupyter_book", reason="the package jupyter-book builds the pages")
pytestmark = pytest.mark.skipif(
    find_chromium() is None,
    reason="no Chromium here: put one on the path or name its program in MIMSSL_CHROMIUM")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A book of a few chapters, built as `make docs` builds all of them."
    home = tmp_path_factory.mktemp("book")
    chapters = [{"file": page} for page in PAGES[1:]]
    toc = {"format": "jb-book", "root": PAGES[0], "chapters": chapters}
    (home / "toc.yml").write_text(json.dumps(toc))
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", ROOT, "--config", ROOT / "nbs/_config.yml",
               "--toc", home / "toc.yml", "--path-output", home]
    built = subprocess.run([str(c) for c in command], cwd=home, capture_output=True, text=True)
    assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    return home / "_build/html"


@pytest.fixture(scope="module", params=WIDTHS)
def browser(request, tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile"), WIDTHS[request.param], 800) as browser:
        browser.send("Network.emulateNetworkConditions", offline=True, latency=0,
                     downloadThroughput=-1, uploadThroughput=-1)
        yield browser


def show(browser, address: str, ready: str = "true"):
    "Open a page and wait until its formulas are drawn, too."
    browser.errors.clear(), browser.requests.clear()
    drawn = "(!document.querySelector('.math') || document.querySelector('mjx-container'))"
    browser.open(address, f"document.readyState === 'complete' && !!{drawn} && !!({ready})")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_needs_nothing_else(site, browser, page):
    name = "index" if page == "README" else page
    show(browser, (site / f"{name}.html").as_uri())
    assert not browser.errors, browser.errors
    schemes = {address.split(":")[0] for address in browser.requests}
    assert schemes <= {"file", "data", "about"}, browser.requests
    sideways = browser.run("document.documentElement.scrollWidth > window.innerWidth")
    assert not sideways, "the page scrolls sideways"
    pictures = "[...document.querySelectorAll('.bd-article img')]"
    assert browser.run(f"{pictures}.every(i => i.naturalWidth > 0)"), "a picture is missing"


@pytest.mark.parametrize("page", PAGES[1:3])
def test_a_method_is_readable(site, browser, page):
    show(browser, (site / f"{page}.html").as_uri())
    source = "[...document.querySelectorAll('.cell_input pre')]"
    printed = browser.run(f"{source}.filter(e => /^#\\|/m.test(e.textContent)).length")
    assert browser.run(f"{source}.length") > 5 and not printed, "a directive is printed"
    coloured = browser.run(f"{source}.filter(e => e.querySelector('span.k, span.nb')).length")
    assert coloured > 3, "code has no colours"
    assert browser.run("document.querySelectorAll('mjx-container').length") > 3, "no formulas"
    assert not browser.run("!!document.querySelector('mjx-merror')"), "a formula is wrong"
    folded = "[...document.querySelectorAll('details.hide')]"
    assert browser.run(f"{folded}.length > 2 && {folded}.every(e => !e.open)"), "nothing is folded"
    opened = f"({folded}[0].querySelector('summary').click(), {folded}[0].open)"
    assert browser.run(opened), "a click shows the folded code"
    alts = browser.run("[...document.querySelectorAll('.cell_output img')].map(i => i.alt)")
    assert len(alts) > 1 and all(len(alt) > 20 and " " in alt for alt in alts), alts


def test_search(site, browser):
    found = "document.querySelectorAll('#search-results li a').length"
    show(browser, (site / "search.html").as_uri() + "?q=condenser", found)
    listed = "[...document.querySelectorAll('#search-results li a')]"
    links = browser.run(f"{listed}.map(a => a.href)")
    assert any("methods/moca.html" in link for link in links), links
    assert not browser.errors, browser.errors
    done = "document.querySelector('#search-results p.search-summary, #search-results p')"
    show(browser, (site / "search.html").as_uri() + "?q=zzzz", done)
    assert browser.run(found) == 0
