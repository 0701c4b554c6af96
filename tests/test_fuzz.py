"""Damaged and odd files for every reader: each is read, or refused in one of our sentences, in
bounded time and memory. MIMSSL_FUZZ=100000 tries so many; seeds are printed with what fails.
"""
import io, json, os, random, resource, tarfile, time, warnings
from pathlib import Path
import numpy as np, pytest, timm, torch, yaml
from PIL import Image
from safetensors.torch import save
from mimssl.cli import metric_records, read_params
from mimssl.data.files import read_json, read_yaml
from mimssl.data.images import image_size, read_image, read_labels
from mimssl.data.own import describe_folder
from mimssl.data.packed import Shards
from mimssl.data.records import metric_record
from mimssl.data.settings import BadInput, settings
from mimssl.data.sources import Captioned, ClassFolders, Coco, Davis, Labelled, Listed
from mimssl.evaluation.detection import read_results, read_truth
from mimssl.parts.encoder import EncoderConfig, architecture, build_encoder
from mimssl.parts.formats import load
from mimssl.parts.heads import load_patch_head
from mimssl.parts.image_text import ImageText, TextTower, describe
from mimssl.parts.text import TextConfig
from mimssl.report.tables import result_table, to_markdown
from mimssl.training.checkpoints import read_weights, save_state
from mimssl.training.loop import Run, load_state
from mimssl.training.recipes import read_recipe
from support.tiny import ENCODER, make_study

COUNT = int(os.environ.get("MIMSSL_FUZZ", 3000))
FIRST = int(os.environ.get("MIMSSL_FUZZ_SEED", 0))
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


TENSORS = [torch.zeros(()), torch.zeros(0), torch.ones(3), torch.ones(2, 3, dtype=torch.int64),
           torch.full((1, 5, 7), torch.nan), torch.zeros(1, 1, 1, 1), torch.ones(4).half(),
           torch.ones(2, 2, dtype=torch.complex64), torch.ones(1, dtype=torch.bool)]


def shuffled(state: dict, rng: random.Random) -> dict:
    "A state dict with tensors that are missing, renamed, cut, of another shape, or odd."
    state = dict(state)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        if not state: break
        name = rng.choice(list(state))
        kind, x = rng.randrange(6), state[name]
        if kind == 0: del state[name]
        elif kind == 1: state[rng.choice(("", "x.", "blocks.", "module.", "a.b."))
                              + rng.choice((name, name[:-2], "blocks.x", "blocks.9.norm1.weight"))
                              ] = state.pop(name)
        elif kind == 2 and x.ndim: state[name] = x[:rng.randrange(len(x) + 1)].clone()
        elif kind == 3: state[name] = x[None].clone()
        elif kind == 4: state[name] = rng.choice(TENSORS).clone()
        else: state[name + rng.choice((".x", "2"))] = x.clone()
    return state


class Files:
    "A folder with a run, its weights, parameters and records, and every reader on an odd one."
    def __init__(self, home: Path):
        self.home = home
        make_study(home, images=8)
        torch.manual_seed(0)
        self.vit = build_encoder(EncoderConfig(**ENCODER))
        self.timm = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, embed_dim=24,
                                      num_classes=0)
        self.model = ImageText(self.vit, TextTower(TextConfig(16, 1, 2, 8), 12),
                               projection=torch.nn.Linear(32, 12))
        self.params = yaml.safe_load((home / "params.yaml").read_text())
        self.params["recipes"]["two"] = {"method": "mae_ct", "init": "mae", "dataset": "stripes",
                                         "options": {"queue_size": 64}}
        self.recipe = read_recipe(self.params, "mae", {"batch_size": 2})
        self.run = Run(self.recipe, 0, ClassFolders(home, home / "stripes/train", None)).start()
        self.state = self.run.state()
        save_state(home / "rolling.pt", self.state)
        self.about = self.run.about() | {"fingerprint": "0" * 12}
        self.record = metric_record("mae-s0", "mae", "knn", "top1", 41., 50, 0, "ab", "scenes",
                                    {"k": 20}, "cpu", 1.)
        (home / "hub").mkdir()
        self.kinds = [k for k in dir(self) if k.startswith("of_")]

    def write(self, data: bytes, name: str) -> Path:
        (self.home / name).write_bytes(data)
        return self.home / name

    def tensors(self, rng, state: dict, about: dict, name="odd.safetensors") -> Path:
        "A file of safetensors, damaged, or with other tensors, or with another description."
        kind, about = rng.randrange(3), dict(about)
        if kind == 1: state = shuffled(state, rng)
        if kind == 2:
            key = rng.choice(list(about))
            about[key] = text(json.loads(about[key]), rng).decode("utf-8", "replace")
        data = save({k: x.contiguous() for k, x in state.items()}, about)
        return self.write(damaged(data, rng) if kind == 0 else data, name)

    def of_encoder(self, rng):
        about = {"architecture": json.dumps(architecture(self.vit))}
        load(self.tensors(rng, self.vit.state_dict(), about))

    def of_run(self, rng):
        file = self.tensors(rng, self.run.method.state_dict(), {"about": json.dumps(self.about)})
        rng.choice((load, read_weights, load_patch_head))(file)

    def of_image_text(self, rng):
        about = {"image_text": json.dumps(describe(self.model))}
        load(self.tensors(rng, self.model.state_dict(), about))

    def of_checkpoint(self, rng):
        "A file of torch.save, of all forms in which trainers write theirs."
        state = shuffled(self.timm.state_dict(), rng)
        prefix = rng.choice(("", "module.", "backbone.", "teacher.backbone.", "encoder."))
        content = {prefix + n: x for n, x in state.items()}
        for name in rng.choice(((), ("model",), ("state_dict",), ("teacher",))):
            content = {name: content, "epoch": rng.choice(ODD)}
        if rng.random() < .1: content = rng.choice([*ODD, *TENSORS])
        out = io.BytesIO()
        torch.save(content, out)
        data = damaged(out.getvalue(), rng) if rng.random() < .4 else out.getvalue()
        load(self.write(data, "odd.pt"), num_heads=rng.choice((None, 1, 3, 5, -1)),
             part=rng.choice((None, None, prefix, "x.")))

    def of_rolling(self, rng):
        state = self.state
        if rng.random() < .6:
            state, key = dict(state), rng.choice(list(state))
            if rng.random() < .3: del state[key]
            elif key == "method": state[key] = shuffled(state[key], rng)
            else: state[key] = rng.choice([*ODD, TENSORS[2]]) if rng.random() < .5 else changed(
                state[key], rng)
            out = io.BytesIO()
            torch.save(state, out)
            data = out.getvalue()
        else: data = damaged((self.home / "rolling.pt").read_bytes(), rng)
        file = self.write(data, "odd_rolling.pt")
        self.run.restore(load_state(file), file)

    def of_params(self, rng):
        params = changed(self.params, rng) if rng.random() < .8 else self.params
        data = yaml.safe_dump(params).encode()
        file = self.write(damaged(data, rng) if rng.random() < .4 else data, "odd.yaml")
        found = read_params(file)
        for name in found["recipes"]: read_recipe(found, name)

    def of_records(self, rng):
        lines = [text(self.record, rng) if rng.random() < .5 else json.dumps(self.record).encode()
                 for _ in range(3)]
        data = b"\n".join(lines) + b"\n"
        file = self.write(damaged(data, rng) if rng.random() < .3 else data, "odd.jsonl")
        to_markdown(result_table(metric_records(file)))

    def of_hub(self, rng):
        "A folder of timm's form or of that of transformers."
        config = rng.choice((
            dict(architecture="vit_tiny_patch16_224", num_classes=0,
                 model_args=dict(depth=1, img_size=32, embed_dim=24),
                 pretrained_cfg=dict(mean=[.5] * 3, std=[.25] * 3)),
            dict(model_type="vit", architectures=["ViTModel"], num_attention_heads=3,
                 layer_norm_eps=1e-12, hidden_act="gelu")))
        self.write(text(config, rng), "hub/config.json")
        self.write(text(dict(image_mean=[.5] * 3, image_std=[.5] * 3, do_normalize=True), rng),
                   "hub/preprocessor_config.json")
        self.tensors(rng, self.timm.state_dict(), {"format": '"pt"'}, "hub/model.safetensors")
        load(self.home / "hub")


def fuzz(readers, count: int):
    "Give `count` odd files to the readers in turn; anything but a sentence fails."
    kept, slowest, failures = 0, (0., ""), []
    warnings.simplefilter("ignore")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(FIRST, FIRST + count):
        rng = random.Random(seed)
        kind, begin = readers.kinds[seed % len(readers.kinds)], time.perf_counter()
        try: getattr(readers, kind)(rng); kept += 1
        except BadInput as error:
            told = str(error)
            if "\n" in told or not told.endswith(".") or len(told) > 2000:
                failures.append(f"seed {seed}, {kind}: {told!r}")
        except Exception as error: failures.append(f"seed {seed}, {kind}: {error!r}")
        slowest = max(slowest, (time.perf_counter() - begin, f"seed {seed}, {kind}"))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2 ** 10
    print(f"{count} files from seed {FIRST}: {kept} read, {count - kept} refused; slowest "
          f"{slowest}; {grown:.0f} MB more at the peak")
    assert not failures, f"{len(failures)} of {count}: " + "\n".join(failures[:40])
    assert slowest[0] < 20 and 0 < kept < count and grown < 1024


@pytest.fixture
def home(tmp_path, monkeypatch):
    "An empty folder; settings from it alone."
    monkeypatch.setenv("MIMSSL_OUTPUTS", str(tmp_path / "outputs"))
    for name in ("DATA", "WORKERS"): monkeypatch.delenv(f"MIMSSL_{name}", raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_only_our_own_sentences(home): fuzz(Readers(home), COUNT)


def test_weights_parameters_and_records(home): fuzz(Files(home), COUNT // 5)
