"""Damaged and odd files for every reader of data: each is read, or refused in one of our sentences,
in bounded time. MIMSSL_FUZZ=100000 tries so many; seeds are printed with what fails.
"""
import io, json, os, random, tarfile, time, warnings
from pathlib import Path
import numpy as np
from PIL import Image
from mimssl.data.files import read_json, read_yaml
from mimssl.data.images import image_size, read_image, read_labels
from mimssl.data.own import describe_folder
from mimssl.data.packed import Shards
from mimssl.data.settings import BadInput, settings
from mimssl.data.sources import Captioned, ClassFolders, Coco, Davis, Labelled, Listed
from mimssl.evaluation.detection import read_results, read_truth

COUNT = int(os.environ.get("MIMSSL_FUZZ", 3000))
SQUARE = [[2, 1, 6, 1, 6, 4, 2, 4]]
COCO = {"images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 12,
                    "neg_category_ids": [3], "not_exhaustive_category_ids": []}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": SQUARE,
                         "area": 12, "bbox": [2, 1, 4, 3], "iscrowd": 0},
                        {"id": 2, "image_id": 1, "category_id": 3, "area": 3, "bbox": [0, 0, 3, 1],
                         "segmentation": {"size": [12, 16], "counts": [1, 3, 188]}, "iscrowd": 1}],
        "categories": [{"id": 3, "name": "ring", "frequency": "r"}]}
RESULTS = [{"image_id": 1, "category_id": 3, "score": .5, "bbox": [2, 1, 4, 3]}]
CAPTIONS = [{"file": "a.png", "split": "val", "captions": ["A dog ."]}]
KARPATHY = {"images": [{"filename": "a.png", "split": "val", "sentences": [{"raw": "A dog ."}]}]}
ODD = [None, True, False, 0, -1, 2**70, 1e308, 1.5, "", "x", "../x", "a\0b", "é" * 300, [], {},
       [[]], [None], {"a": 1}, "/etc", [1e9] * 6, {"size": [12, 16], "counts": "abc"}, -0.0, "1",
       [1, "2"]]


def pictures() -> list[bytes]:
    "Small pictures of many kinds."
    x, found = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8), []
    exif = Image.Exif(); exif[0x0112] = 6
    for kind, mode in (("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"),
                       ("PNG", "P"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "1"), ("TIFF", "RGB"),
                       ("TIFF", "L"), ("WEBP", "RGB"), ("BMP", "RGB"), ("PPM", "RGB"), ("PPM", "L"),
                       ("PNG", "I;16")):
        out = io.BytesIO()
        image = (Image.fromarray(x[..., 0].astype(np.uint16) * 257) if mode == "I;16"
                 else Image.fromarray(x).convert("RGBA" if mode == "LA" else mode).convert(mode))
        image.save(out, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
        found.append(out.getvalue())
    return found


def damaged(data: bytes, rng: random.Random) -> bytes:
    "Bytes cut, changed, doubled, zeroed or filled."
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not data: break
        at, kind = rng.randrange(len(data)), rng.randrange(7)
        if kind == 0: del data[at:]
        elif kind == 1: data[at] = rng.randrange(256)
        elif kind == 2: data[at] ^= 1 << rng.randrange(8)
        elif kind == 3: data[at:at] = data[at:at + rng.randrange(40)]
        elif kind == 4: data[at:at + rng.randrange(40)] = bytes(rng.randrange(40))
        elif kind == 5: del data[at:at + rng.randrange(40)]
        else: data[at:at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
    return bytes(data)


def changed(value, rng: random.Random):
    "A JSON value with one thing in it replaced, dropped or doubled."
    if not isinstance(value, (dict, list)) or not value or rng.random() < .15:
        return rng.choice(ODD)
    value = dict(value) if isinstance(value, dict) else list(value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    kind = rng.random()
    if kind < .15: del value[key]
    elif kind < .25 and isinstance(value, list): value.append(value[key])
    else: value[key] = changed(value[key], rng)
    return value


def text(value, rng: random.Random) -> bytes:
    "JSON of a changed value, sometimes damaged as bytes."
    for _ in range(rng.choice((1, 1, 2, 4))): value = changed(value, rng)
    out = json.dumps(value).encode()
    return damaged(out, rng) if rng.random() < .2 else out


class Readers:
    "A folder with one picture, and every reader on the file `odd` in it."
    def __init__(self, home: Path):
        self.home, self.pictures = home, pictures()
        Image.new("RGB", (16, 12)).save(home / "a.png")
        Image.new("L", (16, 12)).save(home / "l.png")
        (home / "frames/s").mkdir(parents=True)
        Image.new("RGB", (16, 12)).save(home / "frames/s/0.png")
        (home / "tree/train/a").mkdir(parents=True)
        Image.new("RGB", (16, 12)).save(home / "tree/train/a/0.png")
        (home / "shards").mkdir(); (home / "ini").mkdir(); (home / "own").mkdir()
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, data in (("0.png", self.pictures[3]), ("0.cls", b"1"),
                               ("0.json", b'{"caption": "x"}')):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        self.tar = out.getvalue()
        self.kinds = [k for k in dir(self) if k.startswith("of_")]

    def write(self, data: bytes, name="odd") -> Path:
        (self.home / name).write_bytes(data)
        return self.home / name

    def of_picture(self, rng):
        file = self.write(damaged(rng.choice(self.pictures), rng))
        rng.choice((read_image, read_labels, image_size, lambda f: image_size(f, True)))(file)

    def of_coco(self, rng):
        data = Coco(self.home, self.home, self.write(text(COCO, rng)))
        for i in range(len(data)): data[i]

    def of_coco_captions(self, rng):
        annotations = {"images": COCO["images"],
                       "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}
        Coco(self.home, self.home, captions=self.write(text(annotations, rng)))[0]

    def of_truth(self, rng):
        read_truth(self.write(text(COCO, rng)), rng.choice(("bbox", "segm")), rng.random() < .5)

    def of_results(self, rng):
        read_results(self.write(text(RESULTS, rng)), read_truth(COCO))

    def of_captions(self, rng):
        Captioned(self.home, self.home, self.write(text(rng.choice((CAPTIONS, KARPATHY)), rng)),
                  "val")[0]

    def of_class_names(self, rng):
        names = self.write(text({"a": "cat"}, rng), "tree/classes.json")
        ClassFolders(self.home, self.home / "tree/train", names)[0]

    def of_csv(self, rng):
        Listed(self.home, self.home,
               self.write(damaged(b"file,label,caption\na.png,1,\"x, y\"\n", rng)))[0]

    def of_davis(self, rng):
        (self.home / "masks/s").mkdir(parents=True, exist_ok=True)
        self.write(damaged(self.pictures[4], rng), "masks/s/0.png")
        listing = self.write(damaged(b"s\n", rng) if rng.random() < .3 else b"s\n")
        Davis(self.home, self.home / "frames", self.home / "masks", listing)[0]

    def of_labels(self, rng):
        Labelled(self.home, [self.home / "a.png"], [self.write(damaged(self.pictures[4], rng))])[0]

    def of_description(self, rng):
        given = (b"format: labels\nsplits: {train: day, val: night}\nlayout: {masks: x}\nignore: "
                 b"11\n")
        self.write(damaged(given, rng), "own/dataset.yaml")
        describe_folder(self.home / "own")

    def of_settings(self, rng):
        self.write(damaged(b"[paths]\ndata = x\n[roots]\na = b\n[dataset c]\nformat = csv\n", rng),
                   "ini/settings.ini")
        settings(self.home / "ini")

    def of_shards(self, rng):
        self.write(damaged(self.tar, rng), "shards/train.tar")
        Shards(self.home, self.home / "shards", "train")[0]

    def of_json(self, rng): read_json(self.write(damaged(json.dumps(COCO).encode(), rng)))

    def of_yaml(self, rng): read_yaml(self.write(damaged(b"a: [1, 2]\nb: {c: &x 1, d: *x}\n", rng)))


def test_only_our_own_sentences(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMSSL_OUTPUTS", str(tmp_path / "outputs"))
    for name in ("DATA", "WORKERS"): monkeypatch.delenv(f"MIMSSL_{name}", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    readers, first = Readers(home), int(os.environ.get("MIMSSL_FUZZ_SEED", 0))
    kept, slowest, failures = 0, (0., ""), []
    warnings.simplefilter("ignore")
    for seed in range(first, first + COUNT):
        rng = random.Random(seed)
        kind, begin = readers.kinds[seed % len(readers.kinds)], time.perf_counter()
        try: getattr(readers, kind)(rng); kept += 1
        except BadInput as error:
            told = str(error)
            if "\n" in told or not told.endswith(".") or len(told) > 2000:
                failures.append(f"seed {seed}, {kind}: {told!r}")
        except Exception as error: failures.append(f"seed {seed}, {kind}: {error!r}")
        slowest = max(slowest, (time.perf_counter() - begin, f"seed {seed}, {kind}"))
    print(f"{COUNT} files from seed {first}: {kept} read, {COUNT - kept} refused; slowest "
          f"{slowest}")
    assert not failures, f"{len(failures)} of {COUNT}: " + "\n".join(failures[:40])
    assert slowest[0] < 20 and 0 < kept < COUNT
