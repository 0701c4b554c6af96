"A headless Chromium driven through its DevTools socket, for tests of pages."
import base64, json, os, shutil, subprocess, time
from pathlib import Path
from urllib.request import urlopen

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
         "chrome-headless-shell")


def find_chromium() -> str | None:
    """The program: MIMSSL_CHROMIUM, or a usual name on the path, or one that playwright downloaded;
    None when there is none.
    """
    downloads = sorted(Path.home().glob(".cache/ms-playwright/chromium*/*/*chrom*"))
    named = [os.environ.get("MIMSSL_CHROMIUM"), *map(shutil.which, NAMES),
             *(str(p) for p in downloads if p.is_file() and os.access(p, os.X_OK))]
    return next(filter(None, named), None)


class Chromium:
    "One page. `errors`: what its scripts threw; `requests`: the addresses that it asked for."
    def __init__(self, profile: Path, width: int = 1000, height: int = 900):
        import websocket
        self.errors, self.requests, self.count = [], [], 0
        # no sandbox: containers run as root, and the pages are our own
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--force-device-scale-factor=1", f"--window-size={width},{height}",
                 "--disable-dev-shm-usage", "--disable-background-networking",
                 "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen([find_chromium(), *flags, "about:blank"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self.wait(lambda: (profile / "DevToolsActivePort").is_file()
                         and (profile / "DevToolsActivePort").read_text().split()[:1], 60)[0]
        pages = self.wait(lambda: [t
                                   for t in json.load(urlopen(f"http://127.0.0.1:{port}/json/list"))
                                   if t["type"] == "page"])
        self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=60,
                                                  suppress_origin=True)
        for domain in ("Page", "Runtime", "Network"): self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)

    def __enter__(self): return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)

    def wait(self, ready, seconds: float = 20):
        "What `ready` gives as soon as it gives something."
        end = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < end, "Chromium does not answer"
            time.sleep(.05)
        return found

    def send(self, method: str, **parameters) -> dict:
        "Call a DevTools method and return its result; events that come meanwhile are kept."
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])

    def run(self, script: str):
        "The value of a JavaScript expression, after the next frame was drawn."
        wrapped = (f"new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => "
                   f"done({script}))))")
        result = self.send("Runtime.evaluate", expression=wrapped, awaitPromise=True,
                           returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, address: str, ready: str = "document.readyState === 'complete'"):
        "Load a page afresh, and wait for the condition `ready`."
        for url, condition in (("about:blank", "location.href === 'about:blank'"),
                               (address, f"location.href !== 'about:blank' && {ready}")):
            self.send("Page.navigate", url=url)
            self.wait(lambda: self.send("Runtime.evaluate",
                                        expression=condition)["result"].get("value") is True)

    def mouse(self, kind: str, x: float, y: float, buttons: int = 0):
        "kind: Pressed, Moved or Released; x and y in the window's pixels."
        button = "none" if kind == "Moved" and not buttons else "left"
        self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, buttons=buttons,
                  button=button, clickCount=int(kind != "Moved"))

    def click(self, x: float, y: float):
        for kind, buttons in (("Moved", 0), ("Pressed", 1), ("Released", 0)):
            self.mouse(kind, x, y, buttons)

    def key(self, key: str, shift: bool = False):
        typed = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=8 * shift, **typed)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=8 * shift)

    def picture(self, path: Path):
        "Save what is seen as PNG."
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
