"The prompt explorer in a browser: what a click shows is what Python computes."
import numpy as np, pytest, torch
from support.chromium import Chromium, find_chromium
from mimssl.data.sources import open_dataset
from mimssl.evaluation.dense import token_counts, token_of_pixels
from mimssl.evaluation.explorer import explore, unpack_tokens, with_names
from mimssl.evaluation.prompt_segmentation import best_ious, threshold_ious
from mimssl.parts.encoder import EncoderConfig, build_encoder

pytest.importorskip("websocket", reason="the package websocket-client drives the browser")
pytestmark = pytest.mark.skipif(find_chromium() is None,
                                reason="no Chromium here: put one on the path or name its program "
                                       "in MIMSSL_CHROMIUM")


def colours(x):
    "Mean and std of the colours of 16 x 16 pixels, (1, 3, S, S) -> (1, h, w, 6)."
    cells = x.unfold(2, 16, 16).unfold(3, 16, 16).flatten(4)
    return torch.cat([cells.mean(-1), cells.std(-1)], 1).movedim(1, -1)


class Twin:
    "The page's numbers in Python, for every encoder: lists of one number each."
    def __init__(self, explorer, items):
        self.images, self.items = explorer.data["images"], items

    def at(self, image: int, x: int, y: int, centre: bool):
        self.masks = [o["mask"].numpy() for o in self.items[image]["objects"]]
        here = [i for i, m in enumerate(self.masks) if m[y, x]]
        self.object = min(here, key=lambda i: self.masks[i].sum()) if here else None
        self.similar, self.counts, self.cells = [], [], []
        for about in self.images[image]["tokens"]:
            cell, u = (token_of_pixels(self.masks[0].shape, about["grid"]),
                       unpack_tokens(about, centre))
            self.cells.append(cell)
            self.similar.append((u @ u[cell[y, x]]).numpy())
            self.counts.append(token_counts(np.stack(self.masks), tuple(about["grid"])))
        return self

    def under(self, x, y): return [s[c[y, x]] for s, c in zip(self.similar, self.cells)]

    def score(self, threshold):
        "IoU with the object under the prompt, without one the share of the image that is selected."
        if self.object is None:
            return [pixels[s > threshold].sum() / pixels.sum()
                    for s, (_, pixels) in zip(self.similar, self.counts)]
        return [threshold_ious(s[None], inside[[self.object]], pixels, [threshold])[0, 0]
                for s, (inside, pixels) in zip(self.similar, self.counts)]

    def best(self):
        return [best_ious(s[None], inside[[self.object]], pixels)[0]
                for s, (inside, pixels) in zip(self.similar, self.counts)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The page of three scenes and two encoders, and its twin."
    scenes = open_dataset("scenes-coco", "val")
    items = with_names(scenes, [0, 2, 4])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = build_encoder(EncoderConfig(embed_dim=48, depth=2, num_heads=4, patch_size=8,
                                          image_size=64))
    explorer = explore(items, {"vit": vit, "colours": colours}, size=96, device="cpu",
                       progress=False)
    folder = tmp_path_factory.mktemp("page")
    (folder / "notebook.html").write_text(f"<!doctype html><body data-jp-theme-light='false'>"
                                          f"{explorer._repr_html_()}</body>")
    return explorer.save(folder / "explorer.html"), Twin(explorer, items)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser: yield browser


@pytest.fixture
def page(browser, made):
    "The open page; afterwards nothing may have gone wrong, nor anything been fetched."
    show(browser, made[0])
    yield browser
    assert not browser.errors, browser.errors
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "data", "about"}


def show(browser, path, hash=""):
    browser.open(path.as_uri() + hash,
                 "document.querySelectorAll('data.iou, data.share').length == 2")


def numbers(page, name, frame="document") -> list[float]:
    "The exact values of one kind that the panels show."
    return [float(v) for v in page.run(f"[...{frame}.querySelectorAll('.panel data.{name}')].map(e "
                                       f"=> e.value)")]


def spot(page, x, y, panel=0):
    "Where in the window the pixel (x, y) of an image of 96 x 96 pixels is."
    left, top, width, height = page.run(f"(r => [r.left, r.top, r.width, "
                                        f"r.height])(document.querySelectorAll('.stage')[{panel}"
                                        f"].getBoundingClientRect())")
    return left + (x + .5) / 96 * width, top + (y + .5) / 96 * height


def shown(page):
    return "iou" if page.run("!!document.querySelector('.panel data.iou')") else "share"


@pytest.mark.parametrize("features", ["raw", "centred"])
def test_a_click_shows_what_python_computes(page, made, features):
    rng, twin, kinds = np.random.default_rng(0), made[1], set()
    page.run(f"document.querySelector('input[value={features}]').click()")
    points = [tuple(map(int, p)) for p in rng.integers(0, 96, (4, 2))] + [
        tuple(o["point"]) for o in twin.images[0]["objects"]]
    for n, (x, y) in enumerate(points):
        page.click(*spot(page, x, y, panel=n % 2))
        expected = twin.at(0, x, y, features == "centred")
        kinds.add(shown(page))
        assert shown(page) == ("share" if expected.object is None else "iou")
        # 1: the prompt itself
        np.testing.assert_allclose(numbers(page, "cursor"), expected.under(x, y), rtol=0, atol=1e-9)
        np.testing.assert_allclose(numbers(page, shown(page)), expected.score(.3), rtol=0,
                                   atol=1e-12)
        other = tuple(map(int, rng.integers(0, 96, 2)))
        page.mouse("Moved", *spot(page, *other))
        np.testing.assert_allclose(numbers(page, "cursor"), expected.under(*other), rtol=0,
                                   atol=1e-9)
    assert kinds == {"iou", "share"}


def test_every_threshold_and_the_best(page, made):
    x, y = made[1].images[0]["objects"][1]["point"]
    page.click(*spot(page, x, y))
    expected, object = made[1].at(0, x, y, True), made[1].images[0]["objects"][1]["name"]
    assert page.run("document.querySelector('#objects [aria-pressed=true]').textContent") == object
    for threshold in (-1, -.35, 0, .15, .62, .99):
        page.run(f"(e => {{ e.value = {threshold}; e.dispatchEvent(new Event('input')); "
                 f"}})(document.getElementById('threshold'))")
        np.testing.assert_allclose(numbers(page, "iou"), expected.score(threshold), rtol=0,
                                   atol=1e-12)
    np.testing.assert_allclose(numbers(page, "best"), expected.best(), rtol=0, atol=1e-12)
    for panel in (0, 1):
        page.run(f"document.querySelectorAll('.panel .facts button')[{panel}].click()")
        assert numbers(page, "iou")[panel] == numbers(page, "best")[panel]
    left, width, top = page.run(
        "(r => [r.left, r.width, "
        "r.top])(document.querySelector('.histogram').getBoundingClientRect())")
    page.click(left + 10 + (width - 20) * .75, top + 30)  # the histogram sets it too
    np.testing.assert_allclose(numbers(page, "iou"), expected.score(.5), rtol=0, atol=1e-12)


def test_drag_and_keys(page, made):
    twin = made[1]
    page.mouse("Moved", *spot(page, 4, 4)), page.mouse("Pressed", *spot(page, 4, 4), 1)
    page.mouse("Moved", *spot(page, 70, 44), 1), page.mouse("Released", *spot(page, 70, 44))
    np.testing.assert_allclose(numbers(page, shown(page)), twin.at(0, 70, 44, True).score(.3),
                               rtol=0, atol=1e-12)
    # to the middle of the next patch of the first encoder
    page.key("ArrowRight"), page.key("ArrowDown")
    np.testing.assert_allclose(numbers(page, shown(page)), twin.at(0, 76, 52, True).score(.3),
                               rtol=0, atol=1e-12)
    page.key("ArrowLeft", shift=True), page.key("+"), page.key("c")
    np.testing.assert_allclose(numbers(page, shown(page)), twin.at(0, 44, 52, False).score(.31),
                               rtol=0, atol=1e-12)
    page.key("n")
    x, y = max(zip(twin.images[1]["objects"], twin.items[1]["objects"]),
               key=lambda o: o[1]["mask"].sum())[0]["point"]
    np.testing.assert_allclose(numbers(page, "iou"), twin.at(1, x, y, False).score(.31), rtol=0,
                               atol=1e-12)
    for _ in range(3): page.key("v"), page.key("s")  # every view draws


def test_the_address_keeps_the_view(page, made):
    path, twin = made
    show(page, path, "#image=2&prompt=50,20&threshold=-0.2&features=raw&view=mask")
    np.testing.assert_allclose(numbers(page, shown(page)), twin.at(2, 50, 20, False).score(-.2),
                               rtol=0, atol=1e-12)
    page.click(*spot(page, 33, 60))
    page.wait(
        lambda: (
            page.run("location.hash")
            == "#image=2&prompt=33,60&threshold=-0.2&features=raw&view=mask&map=patches&encoder=vit"
        )
    )


def test_inside_a_notebook(page, made):
    show_frame = made[0].with_name("notebook.html").as_uri()
    page.open(
        show_frame,
        "document.querySelector('iframe')?.contentDocument.querySelectorAll('data.iou').length == "
        "2")
    frame = "document.querySelector('iframe').contentDocument"
    x, y = max(zip(made[1].images[0]["objects"], made[1].items[0]["objects"]),
               key=lambda o: o[1]["mask"].sum())[0]["point"]
    np.testing.assert_allclose(numbers(page, "iou", frame), made[1].at(0, x, y, True).score(.3),
                               rtol=0, atol=1e-12)
    fits = ("document.querySelector('iframe').clientHeight === "
            "document.querySelector('iframe').contentDocument.body.offsetHeight")
    page.wait(lambda: page.run(fits))
    assert page.run(f"{frame}.documentElement.style.colorScheme") == "dark"


def test_the_address_keeps_the_encoder(page, made):
    show(page, made[0], "#image=1&prompt=20,30&threshold=0.1&encoder=colours")
    active = "document.querySelector('.panel.active').dataset.encoder"
    assert page.run(active) == "colours"
    assert page.run("document.querySelector('#encoder input:checked').value") == "1"
    page.key("e")
    assert page.run(active) == "vit"
    page.wait(lambda: page.run("location.hash").endswith("&encoder=vit"))
    page.run("document.querySelectorAll('.stage')[1].focus()")      # the keys follow the focus
    page.wait(lambda: page.run("location.hash").endswith("&encoder=colours"))


def test_everything_has_a_name_for_a_screen_reader(page):
    named = ("e.textContent.trim() || e.getAttribute('aria-label') || e.alt || e.title || "
             "e.labels?.length || e.querySelector('img[alt]') || e.closest('[aria-label]')")
    bare = page.run(f"[...document.querySelectorAll('button, input, [role], img')]"
                    f".filter(e => !({named})).length")
    assert bare == 0 and page.run("document.documentElement.lang") == "en"
    page.key("ArrowRight")
    page.wait(lambda: "Row" in page.run("document.getElementById('spoken').textContent"))
    assert "threshold" in page.run(
        "document.querySelector('.histogram').getAttribute('aria-label')")


def test_a_phone_shows_one_encoder_and_nothing_sticks_out(page, made):
    size = lambda width, height: page.send("Emulation.setDeviceMetricsOverride", width=width,
                                           height=height, deviceScaleFactor=1, mobile=True)
    try:
        size(360, 740)
        show(page, made[0], "#encoder=colours")
        seen = page.run("[...document.querySelectorAll('.panel')].filter(p => p.offsetWidth).map(p "
                        "=> " "p.dataset.encoder).join()")
        assert seen == "colours"
        assert page.run("document.documentElement.scrollWidth") <= 360
    finally:
        page.send("Emulation.setDeviceMetricsOverride", width=1000, height=900, deviceScaleFactor=1,
                  mobile=False)
