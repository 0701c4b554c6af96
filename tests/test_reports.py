"""What public bug reports did to readers of data: each is a kind, with its value from the report
and siblings. All inputs are small and generated.
"""
import json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from mimssl.cli import main
from mimssl.data.images import read_image, read_labels
from mimssl.data.settings import BadInput
from mimssl.data.sources import check, fingerprint, open_dataset
from mimssl.evaluation.davis import score_folder, videos
from mimssl.evaluation.detection import coco_scores, read_truth
from mimssl.evaluation.objects import object_kind
from support.tiny import ENCODER, environment, make_study


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A folder of one's own as working directory, no settings from outside."
    for name in ("DATA", "OUTPUTS", "WORKERS"): monkeypatch.delenv(f"MIMSSL_{name}", raising=False)
    monkeypatch.setenv("MIMSSL_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path, size=(40, 40), seed=0, **options):
    "Noise of a size, as a picture."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(x).save(path, **options)
    return path


def labels(path, ids):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(ids)).save(path)
    return path


def refused(said: str, call, *args):
    "`call` raises one sentence that contains `said`."
    with pytest.raises(BadInput) as caught: call(*args)
    told = str(caught.value)
    assert said in told and "\n" not in told and told.endswith("."), told
    return told


def two_classes(home):
    for split, n in (("train", 6), ("val", 4)):
        for c in "ab":
            for i in range(n): picture(home / f"two/{split}/{c}/{i:03}.png", seed=ord(c) * 100 + i)
    return str(home / "two")


# ---- row 1: hidden entries

HIDDEN = ("train/a/._000.jpg", "train/.ipynb_checkpoints/x.jpg", "train/a/.cache/x.jpg", ".x.jpg",
          "val/.DS_Store", "train/.hidden.jpg")

def test_hidden_entries_are_no_data(home):
    name = two_classes(home)
    known = [(d.classes, d.files, d.targets) for d in (open_dataset(name, s)
                                                       for s in ("train", "val"))]
    value = fingerprint(name)
    for path in HIDDEN:
        odd = Path(name) / path
        odd.parent.mkdir(parents=True, exist_ok=True)
        odd.write_bytes(b"any bytes")
        assert fingerprint(name) == value
        for split, before in zip(("train", "val"), known):
            d = open_dataset(name, split)
            assert (d.classes, d.files, d.targets) == before and before[0] == ["a", "b"]


@pytest.mark.parametrize("suite", ["knn"])
def test_knn_of_a_folder_by_its_path_stays(home, capsys, suite):
    name = two_classes(home)
    from mimssl.evaluation.suite import evaluate
    from mimssl.parts.encoder import EncoderConfig, build_encoder, save_encoder
    torch.manual_seed(0)
    save_encoder(home / "e.safetensors", build_encoder(EncoderConfig(**ENCODER)))
    def values():
        return [(r["metric"], r["value"]) for r in evaluate(
            str(home / "e.safetensors"), dataset=name, suite=suite, device="cpu",
            options={"knn": {"ks": [1, 3]}})]
    before = values()
    for path in HIDDEN[:3]: picture(Path(name) / path)
    assert values() == before and before


def test_rows_of_features_are_compared_with_labels():
    from mimssl.evaluation.evaluation import check_features
    assert len(check_features(torch.ones(3, 2), 3, "two")) == 3
    refused("2 rows of features for 3 images", check_features, torch.ones(2, 2), 3, "two")


# ---- row 2: odd files

@pytest.mark.parametrize("make, said", [
    (lambda f: open(os.fsencode(f.parent) + b"/caf\xe9.jpg", "wb").close(), r"caf\xe9.jpg"),
    (lambda f: (f.parent / "dead.jpg").symlink_to("nowhere.jpg"), "dead.jpg: is a link to nowhere"),
    (lambda f: (f.parent / "self.jpg").symlink_to("self.jpg"), "self.jpg: is a link to itself"),
    (lambda f: (f.parent / "up").symlink_to(".."), "is a link back"),
    (lambda f: os.mkfifo(f.parent / "pipe.jpg"), "pipe.jpg: is neither"),
])
def test_odd_files_end_in_a_sentence(home, capsys, make, said):
    name = two_classes(home)
    make(Path(name) / "train/a/x.jpg")
    for call in (fingerprint, lambda n: open_dataset(n, "train")): refused(said, call, name)
    assert main(["data", "inspect", name]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_replaced_image_of_equal_size_is_noticed(home):
    name = two_classes(home)
    before, many = fingerprint(name), fingerprint(name, remember_above=0)
    file = Path(name) / "train/a/000.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + bytes(len(whole) - 200))
    assert fingerprint(name) != before and fingerprint(name, remember_above=0) != many
    file.write_bytes(whole)
    assert fingerprint(name) == before == many


# ---- rows 3 and 5: pixels

def test_pictures_beyond_the_limit(home):
    Image.new("1", (14000, 13000)).save("huge.png")
    for read in (read_image, read_labels): refused("huge.png: cannot be read as", read, "huge.png")


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_16_bits_are_scaled(home, kind):
    x = np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (40, 1))
    labels(f"deep.{kind}", x)
    got = np.asarray(read_image(f"deep.{kind}"))
    assert np.array_equal(got, np.rint(x / 257)[..., None].repeat(3, -1))
    for number in (np.float32, np.int32):
        labels("odd.tif", x.astype(number))
        refused("odd.tif: holds", read_image, "odd.tif")


@pytest.mark.parametrize("dtype, id", [(np.uint16, 1007), (np.uint16, 256), (np.int32, -1)])
def test_labels_beyond_8_bits_name_file_and_id(home, dtype, id):
    suffix = "tif" if id < 0 else "png"
    for i in range(2):
        picture(f"lab/train/{i}.jpg")
        labels(f"lab/trainannot/{i}.png", np.ones((40, 40), np.uint8))
    labels(f"x.{suffix}", np.full((40, 40), id, dtype))
    refused(f"x.{suffix}: holds the id {id}", read_labels, f"x.{suffix}")
    if suffix == "png":
        labels("lab/trainannot/1.png", np.full((40, 40), id, dtype))
        refused(f"1.png: holds the id {id}", lambda: open_dataset("./lab", "train")[1])


# ---- row 6: pairs and order

def clip(home, names, masks=None):
    "A video of a square that moves, its frames called `names`."
    for t, name in enumerate(names):
        x, ids = np.full((48, 64, 3), 30, np.uint8), np.zeros((48, 64), np.uint8)
        x[8:24, 4 * t:4 * t + 16] = 220; ids[8:24, 4 * t:4 * t + 16] = 1
        for folder, array, suffix in (("JPEGImages/480p", x, "jpg"),
                                      ("Annotations/480p", ids, "png")):
            labels(home / f"clip/{folder}/my dog/{name}.{suffix}", array)
    listing = home / "clip/ImageSets/2017/val.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("my dog\n")
    return videos(open_dataset(str(home / "clip"), "val"))


def test_frames_are_in_the_order_of_their_numbers(home):
    plain = clip(home, [str(t) for t in range(12)])
    assert plain.sequences == ["my dog"]
    assert [f.stem for f in plain.frames[0]] == [str(t) for t in range(12)]
    moves = [int(m.nonzero()[:, 1].min()) for m in plain[0]["masks"]]
    assert moves == sorted(moves)
    rows, means = score_folder(plain, home / "clip/Annotations/480p")
    assert means["jf"] == 1 and len(rows) == 1
    picture(home / "clip/JPEGImages/480p/my dog/03.jpg")
    refused("same name or number", open_dataset, str(home / "clip"), "val")


def test_a_stem_twice_is_refused(home):
    for i in range(5):
        picture(f"lab/train/{i:03}.jpg")
        labels(f"lab/trainannot/{i:03}.png", np.ones((40, 40), np.uint8))
    assert [open_dataset("./lab", "train").name(i)
            for i in (0, 4)] == ["train/000.jpg", "train/004.jpg"]
    picture("lab/train/003.png")
    refused("003.png: has the same name", open_dataset, "./lab", "train")


# ---- row 7: keys of annotations

SQUARE = [[4, 4, 20, 4, 20, 20, 4, 20]]

def coco(home, change=None, image=None, drop=(), extra=()):
    for i in range(2): picture(home / f"coco/val2017/{i}.jpg")
    less = lambda r: {k: v for k, v in r.items() if k not in drop}
    data = {
        "images": [less({"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 40})
                   | (image or {} if i else {}) for i in range(2)],
        "annotations": [less({"id": i + 1, "image_id": i, "category_id": 1, "bbox": [4, 4, 16, 16],
                              "area": 256, "iscrowd": 0, "segmentation": SQUARE})
                        | (change or {} if i else {}) for i in range(2)] + list(extra),
        "categories": [{"id": 1, "name": "ring"}]}
    file = home / "coco/annotations/instances_val2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))
    return file


def read_all(home):
    data = open_dataset(str(home / "coco"), "val")
    return [data[i] for i in range(len(data))]


@pytest.mark.parametrize("wrong, said", [
    (dict(change={"image_id": None}), "annotation 2 has no 'image_id'"),
    (dict(change={"category_id": None}), "annotation 2 has no 'category_id'"),
    (dict(change={"segmentation": None}), "annotation 2 has no 'segmentation'"),
    (dict(change={"segmentation": [[1, 2, 3, 4]]}),
     "annotation 2: its segmentation is not polygons"),
    (dict(change={"segmentation": [[1e9, 2, 3, 4, 5, 6]]}), "annotation 2: a polygon has a corner"),
    (dict(change={"bbox": [1]}), "annotation 2 has the bbox"),
    (dict(change={"area": "x"}), "annotation 2 has the area"),
    (dict(change={"iscrowd": 3}), "annotation 2 has the iscrowd"),
    (dict(change={"id": 1}), "id 1 occurs twice in 'annotations'"),
    (dict(image={"id": 0}), "id 0 occurs twice in 'images'"),
    (dict(image={"id": "b"}), "has the id 'b'"),
    (dict(image={"file_name": None}), "image 1 has no 'file_name'"),
    (dict(image={"height": None}), "has no 'height'"),
    (dict(image={"coco_url": 3, "file_name": None}), "image 1 has no 'file_name'"),
    (dict(image={"file_name": 3}), "image 1 names the file 3"),
    (dict(image={"not_exhaustive_category_ids": None}),
     "image 1 has the not_exhaustive_category_ids"),
])
def test_every_key_of_coco_is_named_with_its_record(home, wrong, said):
    coco(home, **wrong)
    refused(said, read_all, home)


@pytest.mark.parametrize("drop", ["bbox", "area", "iscrowd"])
def test_what_follows_from_the_mask_is_computed(home, drop):
    coco(home)
    whole = [{k: v for k, v in i["objects"][0].items() if k != "mask"} for i in read_all(home)]
    for less in (dict(drop=[drop]), dict(change={drop: None})):
        coco(home, **less)
        assert [{k: v for k, v in i["objects"][0].items() if k != "mask"}
                for i in read_all(home)] == whole


def perfect(ids, **more):
    truth = {"images": [{"id": 1, "width": 100, "height": 100}],
             "categories": [{"id": 1, "name": "a"}],
             "annotations": [{"id": k, "image_id": 1, "category_id": 1, "bbox": [12 * n, 5, 10, 10],
                              "area": 100, **more} for n, k in enumerate(ids)]}
    return truth, [{"image_id": 1, "category_id": 1, "score": .9, "bbox": a["bbox"]}
                   for a in truth["annotations"]]


def test_ids_from_0_are_ids(home):
    "Row 15: eight perfect boxes have AP 100, however they are numbered; a null iscrowd is none."
    pytest.importorskip("pycocotools")
    for ids in ([0, 1, 10, 100, 7, 6, 5, 4], range(8), range(1, 9)):
        for more in ({}, {"iscrowd": None}):
            assert coco_scores(*perfect(ids, **more)).summary["AP"] == pytest.approx(1)
    refused("id 3 occurs twice", read_truth, perfect([3, 3])[0])
    refused("annotation 2 has no 'area'", read_truth, perfect([1, 2], area=None)[0] | {
        "annotations": [a | {"area": 1 if a["id"] == 1 else None}
                        for a in perfect([1, 2])[0]["annotations"]]})


# ---- rows 8 and 14: names and colours

def test_names_of_classes_of_another_form(home):
    name = two_classes(home)
    (Path(name) / "classes.json").write_text('["a", "b"]')
    refused("a list instead of a mapping", open_dataset, name, "train")
    picture("lab/train/0.jpg"); labels("lab/trainannot/0.png", np.ones((40, 40), np.uint8))
    Path("lab/classes.json").write_text('{"a": "b"}')
    refused("a mapping instead of a list", open_dataset, "./lab", "train")


def test_masks_in_black_and_white(home):
    for i in range(6):
        picture(f"lab/train/{i}.jpg")
        labels(f"lab/trainannot/{i}.png",
               np.array([[0, 255]] * 20, np.uint8).repeat(2, 0).repeat(20, 1))
    refused("holds 0 and 255 alone", object_kind, open_dataset("./lab", "train"))
    data = clip(home, [f"{t:05}" for t in range(4)])
    file = data.masks[0][0]
    labels(file, np.asarray(Image.open(file)) * 255)
    refused("holds 0 and 255 alone", lambda: videos(open_dataset(str(home / "clip"), "val"))[0])


# ---- EXIF: the same picture for everybody

@pytest.mark.parametrize("way", [1, 3, 6, 8])
def test_a_photo_is_turned_the_same_everywhere(home, way):
    from mimssl.data.image_cache import Form, decode
    from mimssl.evaluation.explorer import read_items
    exif = Image.Exif(); exif[0x0112] = way
    file = picture("photos/a.jpg", (64, 40), exif=exif, quality=95)
    seen = np.asarray(read_image(file))
    assert seen.shape[:2] == ((40, 64) if way < 5 else (64, 40))
    data = open_dataset("./photos", "train")
    for other in (data[0]["image"], decode(data, 0), read_items(str(file))[0]["image"],
                  read_items(Image.open(file))[0]["image"]):
        assert np.array_equal(np.asarray(other), seen)
    assert decode(data, 0, Form(20, draft=True)).size == ((32, 20) if way < 5 else (20, 32))
    coco(home, image={"width": seen.shape[1], "height": seen.shape[0]},
         change={"segmentation": [[1, 1, 9, 1, 9, 9]]})
    shutil.copy(file, home / "coco/val2017/1.jpg")
    assert read_all(home)[1]["image"].size == seen.shape[1::-1]
    check(open_dataset(str(home / "coco"), "val"))
    if way > 4:
        coco(home, image={"width": seen.shape[0], "height": seen.shape[1]})
        shutil.copy(file, home / "coco/val2017/1.jpg")
        refused("annotate it as it is seen", read_all, home)


# ---- row 12: Hydra

@pytest.mark.parametrize("change", ["recipes.mae.epoch=3", "study.seeds=[0,1"])
def test_hydra_speaks_in_one_sentence(change):
    pytest.importorskip("dvc")
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-m", "mimssl.data.study", "compose", "smoke", change],
                          cwd=root, capture_output=True, text=True,
                          env=environment(PYTHONPATH=str(root)))
    assert (done.returncode == 1 and done.stderr.startswith("error: ")
            and done.stderr.count("\n") == 1)


# ---- anybody's photos

MODES = ("RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "I;16")

def photos(home, count=200):
    rng = np.random.default_rng(0)
    for i in range(count):
        w, h = rng.integers(20, 90, 2)
        image = Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        mode = MODES[i % 8]
        if mode == "I;16": image = Image.fromarray(rng.integers(0, 65535, (h, w), dtype=np.uint16))
        elif mode != "RGB": image = image.convert("RGBA" if mode == "LA" else mode).convert(mode)
        file = home / f"photos/IMG_{i}.{'jpg' if mode in ('RGB', 'L', 'CMYK') else 'png'}"
        file.parent.mkdir(exist_ok=True)
        image.save(file)
    (home / "photos/notes.txt").write_text("x")
    Image.new("F", (30, 30)).save(home / "photos/depth.tif")
    Image.new("RGB", (5, 50)).save(home / "photos/line.png")


def test_a_folder_of_photos_is_enough(home, capsys):
    quick = dict(epochs=1, batch_size=50, optimiser={"warmup_epochs": 0, "lr": 1e-3})
    make_study(home, mae=quick | dict(knn={"every": 1}), head=quick | dict(
        method="mae_ct", init="mae", options=dict(
            stage="head", projector_dim=16, predictor_dim=16, output_dim=8, queue_size=100)))
    photos(home)
    ahead = ["pretrain", "--recipe", "head", "--dataset", "photos"]
    assert main(ahead) == 1
    assert ("starts from 'mae', which was not trained on 'photos' yet" in (
            told := capsys.readouterr().err) and "--recipe mae --dataset photos --seed 0" in told)
    argv = ["pretrain", "--recipe", "mae", "--dataset", "photos"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "photos: 200 pictures; left out: 1 files that are no pictures (1 .txt)" in out
    assert ("1 pictures of floating-point numbers, the first is depth.tif" in out
            and "line.png" in out)
    assert (home / "outputs/local/mae-photos-s0/encoder.safetensors").is_file()
    assert main(ahead) == 0, "a recipe that goes on from one on the same photos"
    assert (home / "outputs/local/head-photos-s0/encoder.safetensors").is_file()
    assert main([*argv, "--set", "knn.every=1", "--out", "curve"]) == 1   # asked for, so refused
    assert "has no classes for the k-NN curve" in capsys.readouterr().err
    assert (main(["data", "inspect", "photos"]) == 0
            and "train: 200 images" in capsys.readouterr().out)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_photo_is_one_sentence(home, processes):
    make_study(home)
    photos(home)
    file = home / "photos/IMG_96.jpg"
    file.write_bytes(file.read_bytes()[:300])
    start = [sys.executable,
             "-m"] + (["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
                      if processes > 1 else [])
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([*start, "mimssl", "pretrain", "--recipe", "mae", "--dataset", "photos",
                           "--set", "epochs=1"], cwd=home, capture_output=True, text=True,
                          env=environment(MIMSSL_WORKERS="2", PYTHONPATH=root))
    told = [line for line in done.stderr.splitlines() if "IMG_96.jpg" in line]
    assert (done.returncode == 1 and len(told) == 1
            and told[0].startswith("error: ")), done.stderr[-3000:]
    if processes == 1: assert done.stderr.count("\n") == 1
