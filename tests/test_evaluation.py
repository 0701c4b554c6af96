"""The evaluations from the command line: what is wrong is said in one sentence before any work, and
the dense ones run from end to end.
"""
import io, json, shutil
from contextlib import redirect_stderr, redirect_stdout
import numpy as np, pytest, torch
from PIL import Image
from timm.models import VisionTransformer
from mimssl.cli import main
from mimssl.data.records import read_records, untimed
from mimssl.data.per_image import read_outcomes
from mimssl.data.scenes import davis_palette, generate
from mimssl.evaluation.suite import evaluations
from mimssl.parts.encoder import save_encoder
from support.tiny import make_study


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small study with two encoders, small scenes, a video, street scenes and pictures with
    masks, for all tests to look at.
    """
    home = make_study(tmp_path_factory.mktemp("study"))
    for i in range(12):
        (home / f"stripes/val/{i % 4}").mkdir(parents=True, exist_ok=True)
        shutil.copy(home / f"stripes/train/{i % 4}/{i:03}.png",
                    home / f"stripes/val/{i % 4}/{i:03}.png")
    size = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    torch.manual_seed(0)
    save_encoder(home / "encoder.safetensors", VisionTransformer(**size))
    save_encoder(home / "classless.safetensors",
                 VisionTransformer(**size, class_token=False, global_pool="avg"))
    generate(home / "data/scenes", scale=.05, progress=False,
             subsets=("objects", "coco", "city", "davis"))
    video(home / "real/davis2017")
    streets(home / "real/camvid")
    pictures(home / "real/coco_mini")
    return home


def draw(path, content, palette=False):
    """Write an array as a picture: noise of this seed for a number, palette or grey ids for (H, W),
    colours for (H, W, 3).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(content).integers(0, 255, (32, 48, 3), np.uint8)
                            if isinstance(content, int) else np.asarray(content, np.uint8))
    if palette: image.putpalette(davis_palette())
    image.save(path)


def video(root):
    "Four frames in which a rectangle moves."
    for t in range(4):
        mask = np.zeros((32, 48))
        mask[8:20, 8 + t:24 + t] = 1
        draw(root / f"JPEGImages/480p/drawn/{t:05}.jpg", t)
        draw(root / f"Annotations/480p/drawn/{t:05}.png", mask, palette=True)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("drawn\n")


def streets(root):
    "Images and labels of four classes."
    for split in ("train", "val"):
        for i in range(4):
            draw(root / f"{split}/{i}.png", i)
            draw(root / f"{split}annot/{i}.png", np.tile(np.arange(48) // 12, (32, 1)))
    (root / "classes.json").write_text(json.dumps([f"class {i}" for i in range(11)] + ["void"]))


def pictures(root, segmentation=None, **size):
    "Images with two objects each, in COCO's format."
    for split in ("train", "val"):
        records = [dict(id=i, file_name=f"{i}.png", width=48, height=32) | size for i in range(3)]
        for r in records: draw(root / f"images/{split}2017/{r['file_name']}", r["id"])
        objects = [dict(
            id=2 * i + j + 1, image_id=i, category_id=1, area=512, bbox=[16 * j, 0, 16, 32],
            segmentation=segmentation or [[16 * j, 0, 16 * j + 16, 0, 16 * j + 16, 32, 16 * j, 32]])
                   for i in range(3) for j in range(2)]
        file = root / f"annotations/instances_{split}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dict(images=records, annotations=objects,
                                        categories=[dict(id=1, name="half")])))


@pytest.fixture
def home(alone, made, monkeypatch):
    "The study in the working directory."
    monkeypatch.setenv("MIMSSL_DATA", str(made / "real"))
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def own(home, tmp_path, monkeypatch):
    "As `home`, with real data sets that a test may damage."
    shutil.copytree(home / "real", tmp_path / "real")
    monkeypatch.setenv("MIMSSL_DATA", str(tmp_path / "real"))
    return tmp_path / "real"


def run(*argv) -> tuple[int, str, str]:
    "Exit code, stdout and stderr of a command."
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()


def evaluate(suite, dataset="stripes", *more, model="encoder.safetensors"):
    return run("evaluate", "--model", model, "--suite", suite, "--dataset", dataset, *more)


def sentence(result) -> str:
    "The one sentence with which a command was refused."
    code, out, err = result
    assert ((code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1
            and err.endswith(".\n")), result
    return err


@pytest.mark.parametrize(
    "suite, options, expected",
    [
        ("kn", "", "evaluation 'kn' is not in the suite (did you mean 'knn'?); use "),
        ("knn", "knn.kss=[2]",
         "'knn' has no option 'kss' (did you mean 'ks'?); it knows ks, temperature"),
        ("knn", "linear.epochs=2", "not among the evaluations knn; add it"),
        ("knn", "ks=[2]", "does not name its evaluation"),
        ("knn", "knn.ks=[64]", "k is 64 but only 32 images can be neighbours; choose a smaller k"),
        ("knn_moca", "knn_moca.ks=[30]", "k is 30 but only 29 images"),
        ("knn", "knn.ks=[0]", "ks is [0]; give numbers of neighbours, 1 or more"),
        ("knn", "knn.ks=near", "knn.ks is 'near'; give a whole number"),
        ("knn", "knn.ks=[2] knn.temperature=0", "give numbers above 0"),
        ("linear", "linear.epochs=many", "linear.epochs is 'many'; give a whole number"),
        ("linear", "linear.batch=0", "batch is 0"),
        (
            "lowshot",
            "lowshot.shots=[9]",
            "class 0 has 8 training images, but a low-shot subset needs 9",
        ),
        ("lowshot", "lowshot.lists=nowhere", "nowhere: holds no imagenet_subsets1"),
        ("clustering", "clustering.num_clusters=50", "50 clusters cannot be made of 12 images"),
        ("fewshot", "fewshot.datasets=elsewhere", "data set 'elsewhere' is unknown"),
        (
            "finetune",
            "finetune.fraction=1.5",
            "fraction is 1.5; give a share of the labels, above 0 and up to 1",
        ),
        ("finetune", "finetune.fraction=half", "finetune.fraction is 'half'; give a number"),
        ("finetune", "finetune.size=33", "size 33 is not a multiple of the patch size 8"),
        ("finetune", "finetune.batch=64", "batch is 64 but there are 32 training images"),
        ("retrieval", "", "needs an image-text model"),
        ("zero_shot", "", "needs an image-text model"),
        ("semseg", "", "needs label pictures and the names of their classes"),
        ("prompt_segmentation", "", "needs objects: use a data set in COCO's format"),
        ("similarity", "", "needs objects: use a data set"),
        ("unsupervised_segmentation", "", "needs objects: use a data set"),
        ("davis", "", "needs videos with masks; choose a data set in the DAVIS layout"),
        (
            "knn,nn,finetune",
            "knn.ks=[2] finetune.fraction=2",
            "fraction is 2",
        ),  # the last of three is asked before the first begins
        ("nn,attention_jaccard", "", "needs objects"),
    ],
)
def test_a_wrong_option(home, suite, options, expected):
    assert expected in sentence(evaluate(suite, "stripes",
                                         *(["--set", *options.split()] if options else [])))
    assert not (home / "outputs").exists(), "something was computed"


@pytest.mark.parametrize(
    "suite, dataset, options, expected",
    [
        (
            "prompt_segmentation", "coco_mini", "prompt_segmentation.size=33",
            "size 33 is not a multiple of the patch size 8"
        ),
        ("prompt_segmentation", "coco_mini", "prompt_segmentation.thresholds=[.5,.2]", "ascending"),
        (
            "prompt_segmentation", "scenes-city", "prompt_segmentation.objects=instances",
            "classes of pixels but no instances"
        ),
        (
            "prompt_segmentation", "coco_mini", "prompt_segmentation.objects=things",
            "objects 'things' is unknown; use instances, classes, components"
        ),
        (
            "similarity", "coco_mini", "similarity.kind=projected",
            "this encoder has no patch head; name an encoder.safetensors"
        ),
        (
            "similarity", "coco_mini", "similarity.positions=cubic",
            "positions is 'cubic'; use bicubic, bilinear, dino"
        ),
        (
            "similarity", "coco_mini", "similarity.layer=9",
            "layer 9 is not in an encoder of 2 blocks"
        ),
        (
            "attention_jaccard", "coco_mini", "attention_jaccard.size=33",
            "size 33 is not a multiple"
        ),
        ("unsupervised_segmentation", "coco_mini", "unsupervised_segmentation.ks=[1]", "ks has 1"),
        ("semseg", "camvid", "semseg.crop=33", "crop 33 is not a multiple of the patch size 8"),
        (
            "semseg", "camvid", "semseg.labels=[9]",
            "labels has 9, but the training set has 4 images"
        ),
        (
            "semseg_knn", "camvid", "semseg_knn.distances=l1 semseg_knn.size=32",
            "distance 'l1' is unknown; use cosine or l2"
        ),
        (
            "davis", "davis2017", "davis.short_side=33 davis.multiple=8",
            "short_side 33 gives a side of 33 pixels"
        ),
        (
            "davis",
            "davis2017",
            "davis.short_side=16 davis.multiple=8 davis.save=settings.ini/masks",
            "save is 'settings.ini/masks', where no folder can be made",
        ),
        ("knn", "davis2017", "", "train.txt: missing"),
        ("semseg", "coco_mini", "", "needs label pictures"),
        (
            "clustering", "stripes", "clustering.pca=400",
            "pca is 400; 12 images with 32 features each have 1 to 12 components"
        ),
    ],
)
def test_a_wrong_option_elsewhere(home, suite, dataset, options, expected):
    assert expected in sentence(evaluate(suite, dataset,
                                         *(["--set", *options.split()] if options else [])))


@pytest.mark.parametrize(
    "features, expected",
    [
        ("size=33", "size 33 is not a multiple of the patch size 8"),
        ("layer=3", "layer 3 is not in an encoder of 2 blocks"),
        ("pooling=max", "pooling 'max' is unknown"),
        ("pooling=tokens", "needs one for each image; use cls or mean"),
        ("pool=mean", "feature option 'pool' is unknown; use layer"),
        ("norm=perhaps", "feature option norm is 'perhaps'; give true or false"),
    ],
)
def test_wrong_features(home, features, expected):
    assert expected in sentence(evaluate("nn", "stripes", "--features", features))


def test_features_of_evaluations_that_read_images(home):
    for suite, dataset in (("davis", "davis2017"), ("semseg", "camvid"),
                           ("nn,finetune", "stripes")):
        assert (
            f"no effect on evaluation '{suite.split(',')[-1]}', which reads images itself"
            in sentence(evaluate(suite, dataset, "--features", "size=32"))
        )


@pytest.mark.parametrize(
    "suite, dataset, what", [("attention_jaccard", "coco_mini", "an attention map"),
                             ("finetune", "stripes", "fine-tuning")],
)
def test_encoders_of_another_kind(home, suite, dataset, what):
    "What needs the inside of a plain ViT refuses another network by name, before any work."
    for name, kind in (("vit_tiny_r_s16_p8_224", "VisionTransformer"), ("resnet10t", "ResNet")):
        assert f"{what} needs a plain ViT, and '{name}' is a {kind}" in sentence(evaluate(
            suite, dataset, model=f"untrained:{name}"))


@pytest.mark.parametrize(
    "suite, dataset, options",
    [
        ("knn", "stripes", ["knn.ks=[2]"]),
        ("clustering", "stripes", []),
        ("fewshot", "stripes", []),
        ("attention_jaccard", "coco_mini", ["attention_jaccard.size=32"]),
        ("davis", "davis2017", ["davis.short_side=32", "davis.multiple=8"]),
        ("semseg_knn", "camvid", ["semseg_knn.size=32"]),
    ],
)
def test_no_numbers(home, tmp_path, suite, dataset, options):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2,
                            num_classes=0)
    with torch.no_grad(): vit.blocks[0].norm1.bias[0] = torch.nan
    save_encoder(tmp_path / "broken.safetensors", vit)
    assert "features that are infinite or no numbers" in sentence(evaluate(
        suite, dataset, *(["--set", *options] if options else []),
        model=tmp_path / "broken.safetensors"))


def test_no_class_token(home):
    assert "attention maps need an encoder with a class token" in sentence(evaluate(
        "attention_jaccard", "coco_mini", model="classless.safetensors"))
    assert "pooling 'cls' needs a class token, and this encoder has none; use mean" in sentence(
        evaluate("knn", "stripes", "--features", "pooling=cls", model="classless.safetensors"))
    assert "use mean" in sentence(evaluate("finetune", "stripes", "--set", "finetune.pooling=cls",
                                           model="classless.safetensors"))


def test_files_of_results(home, tmp_path):
    (tmp_path / "notes.txt").write_text("a record\n")
    for place, expected in ((tmp_path, "a folder; name a file"),
                            (tmp_path / "notes.txt", "line 1: not JSON"),
                            (tmp_path / "notes.txt/new.jsonl", "no folder can be made")):
        assert expected in sentence(evaluate("nn", "stripes", "--out", place))
    assert "no folder can be made" in sentence(evaluate("nn", "stripes", "--outcomes",
                                                        tmp_path / "notes.txt"))
    assert "a folder; name a file" in sentence(run(
        "explore", "--model", "encoder.safetensors", "--images", "stripes/val/0/000.png", "--out",
        tmp_path))
    run_folder = tmp_path / "mae-s0"
    run_folder.mkdir()
    shutil.copy(home / "encoder.safetensors", run_folder)
    (run_folder / "recipe.json").write_text("{")
    assert "recipe.json: is not the record of a run" in sentence(evaluate(
        "nn", model=run_folder / "encoder.safetensors"))


def test_a_class_missing_in_a_list(home, tmp_path):
    for i in (1, 2, 3):
        (tmp_path / f"imagenet_subsets{i}").mkdir()
        (tmp_path / f"imagenet_subsets{i}/1imgs_class.txt").write_text("000.png\n001.png\n"
                                                                       "002.png\n")
    options = ["--set", f"lowshot.lists={tmp_path}", "lowshot.shots=1"]
    assert "has no image of class 3; every class needs one" in sentence(evaluate(
        "lowshot", "stripes", *options))
    (tmp_path / "imagenet_subsets1/1imgs_class.txt").write_text("n01440764_1.JPEG\n")
    assert "names the image 'n01440764_1.JPEG'" in sentence(evaluate("lowshot", "stripes",
                                                                     *options))


def test_a_class_without_training_images(home, monkeypatch, tmp_path):
    shutil.copytree(home / "stripes", tmp_path / "imagenette128")
    shutil.rmtree(tmp_path / "imagenette128/train/3")
    monkeypatch.setenv("MIMSSL_DATA", str(tmp_path))
    for suite in ("knn", "knn_moca", "nn", "linear", "lowshot", "fewshot", "finetune"):
        options = ["--set", f"{suite}.ks=[2]"] if suite.startswith("knn") else []
        assert "class 3 is in the test split but has no training image" in sentence(evaluate(
            suite, "imagenette128", *options))
    assert evaluate("clustering", "imagenette128", "--set",
                    "clustering.restarts=1")[0] == 0, "k-means sees the test images alone"


def test_classes_meet_by_name(home, monkeypatch, tmp_path):
    """Each split numbers its own folders: without the first test class, those left have other
    numbers and the same images right or wrong.
    """
    shutil.copytree(home / "stripes", tmp_path / "imagenette128")
    shutil.rmtree(tmp_path / "imagenette128/val/0")
    monkeypatch.setenv("MIMSSL_DATA", str(tmp_path))
    for suite, options in (("knn", ["knn.ks=[2]"]), ("nn", []), ("linear", ["linear.epochs=2"]),
                           ("lowshot", ["lowshot.shots=[2]"]), ("fewshot", ["fewshot.shots=[2]"]),
                           ("finetune", ["finetune.epochs=1", "finetune.batch=8"])):
        for dataset in ("stripes", "imagenette128"):
            assert evaluate(suite, dataset, *(["--set", *options] if options else []), "--outcomes",
                            tmp_path / f"{suite}-{dataset}")[0] == 0
        whole, part = (read_outcomes(tmp_path / f"{suite}-{dataset}")[0]
                       for dataset in ("stripes", "imagenette128"))
        known = dict(zip(whole.names.tolist(), whole.values.tolist()))
        assert len(part.names) == 9 and part.values.tolist() == [
            known[name] for name in part.names.tolist()], suite


def test_features_are_timed_by_themselves(home, tmp_path):
    assert evaluate("knn,lowshot", "stripes", "--set", "knn.ks=[2]", "lowshot.shots=[2]",
                    "--memory", "--out", tmp_path / "records.jsonl")[0] == 0
    *scores, speed = read_records(tmp_path / "records.jsonl")
    assert (speed["evaluation"], speed["metric"],
            speed["protocol"]) == ("features", "images_per_s", {})
    assert 44 < speed["count"] <= 44 + 3 * 8, "all images, and the subsets for lowshot"
    assert all(record["evaluation"] != "features" for record in scores)


FILM = ["--set", "davis.short_side=16", "davis.multiple=8"]

@pytest.mark.parametrize(
    "frame, content, palette, more, expected",
    [
        (
            2, np.zeros((16, 24)), True, [],
            "00002.png: not the size of its image, 48x32 as it is seen; both must agree"
        ),
        (
            2,
            np.zeros((32, 48, 3)),
            False,
            [],
            (
                "00002.png: a label picture holds one id per pixel, this one is RGB; save it as "
                "palette or grey PNG"
            ),
        ),
        (
            0, np.eye(32, 48), False, ["davis.save=out"],
            "00000.png: has no palette to colour masks with; save the annotation as palette PNG"
        ),
        (0, np.zeros((32, 48)), True, [], "no first annotation holds an object"),
        (3, None, False, [], "00003.png: cannot be read as an image"),
    ],
)
def test_wrong_masks_of_films(own, frame, content, palette, more, expected):
    file = own / f"davis2017/Annotations/480p/drawn/{frame:05}.png"
    if content is None: file.write_bytes(file.read_bytes()[:40])
    else: draw(file, content, palette)
    assert expected in sentence(evaluate("davis", "davis2017", *FILM, *more))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("content, expected", [
    (np.zeros((16, 48)), "1.png: not the size of its image, 48x32 as it is seen; both must agree"),
    (np.zeros((32, 48, 3)), "1.png: a label picture holds one id per pixel, this one is RGB"),
    (np.full((32, 48), 40), "1.png: has the label 40, but the data set names 11 classes"),
])
def test_wrong_label_pictures(own, split, content, expected):
    draw(own / f"camvid/{split}annot/1.png", content)
    assert expected in sentence(evaluate("semseg", "camvid", "--set", "semseg.augment=false",
                                         "semseg.crop=32"))
    assert expected in sentence(evaluate("semseg_knn", "camvid", "--set", "semseg_knn.size=32"))
    if split == "val" and "label 40" not in expected:
        assert expected in sentence(evaluate("unsupervised_segmentation", "camvid"))


def test_labels_without_names(own):
    (own / "camvid/classes.json").unlink()
    assert "no names of their classes; add classes.json" in sentence(evaluate("semseg", "camvid"))


@pytest.mark.parametrize(
    "change, expected",
    [
        (dict(width=32), "0.png: 48x32 pixels, but "),
        (
            dict(segmentation="mask.png"),
            "annotation 1: its segmentation is not polygons or a run-length code",
        ),
        (
            dict(segmentation={"size": [32, 48], "counts": "abc"}),
            "annotation 1: its run-length code is damaged",
        ),
        (
            dict(segmentation={"size": [16, 16], "counts": [0, 256]}),
            "annotation 1: its segmentation is of size [16, 16]",
        ),
    ],
)
def test_wrong_masks_of_objects(own, change, expected):
    pictures(own / "coco_mini", **change)
    for suite in ("prompt_segmentation", "similarity", "unsupervised_segmentation",
                  "attention_jaccard"):
        assert expected in sentence(evaluate(suite, "coco_mini"))


def test_damaged_features(home, tmp_path, monkeypatch):
    monkeypatch.setenv("MIMSSL_OUTPUTS", str(tmp_path))
    assert evaluate("nn")[0] == 0
    first, second = sorted((tmp_path / "local/features").iterdir())
    file = first / "features.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] + bytes(8))
    assert f"damaged: delete the folder {first} to compute them again" in sentence(evaluate("nn"))
    file.write_bytes(whole)
    assert evaluate("nn")[0] == 0
    about = first / "about.json"
    found = json.loads(about.read_text())
    about.write_text(json.dumps(found | {"about": found["about"] | {"encoder": "another"}}))
    assert "are of another encoder: delete the folder" in sentence(evaluate("nn"))
    shutil.rmtree(first)
    assert evaluate("nn")[0] == 0


def test_explore_and_compare_refuse(home):
    photo = "stripes/val/0/000.png"
    for argv, expected in (
            (["explore", "--model", "encoder.safetensors"], "there are no images to explore"),
            (["explore", "--model", "none.safetensors", "--images", photo],
             "no such file of weights"),
            (["explore", "--model", "encoder.safetensors", "--images", "none.png"],
             "none.png: no such file"),
            (["explore", "--model", "encoder.safetensors", "--images", photo, "--size", 33],
             "size 33 is not a multiple of the patch size 8"),
            (["explore", "--model", "encoder.safetensors", "encoder.safetensors",
              "--images", photo], "two encoders are called"),
            (["explore", "--model", "encoder.safetensors", "--dataset", "stripes", "--count", 0],
             "--count is 0"),
            (["compare", "mae", "moca", "--records", "none.jsonl"],
             "none.jsonl: no such file of records"),
            (["score", "--kind", "coco", "--truth", "none.json", "--results", "none.json"],
             "none.json: no such file")):
        assert expected in sentence(run(*argv))


DENSE = {
    "scenes-coco": ["prompt_segmentation,similarity,unsupervised_segmentation,attention_jaccard",
                    "prompt_segmentation.tune=8", "unsupervised_segmentation.ks=[3,oracle]",
                    "attention_jaccard.size=32"],
    "scenes-city": [
        "semseg,semseg_knn", "semseg.augment=false", "semseg.epochs=2", "semseg.size=32",
        "semseg.batch=4", "semseg_knn.size=32", "semseg_knn.ks=[1,3]", "semseg_knn.max_iter=20"],
    "scenes-davis": ["davis", "davis.short_side=32", "davis.multiple=8"]}

@pytest.mark.parametrize("dataset", DENSE)
def test_dense_evaluations_from_end_to_end(home, tmp_path, monkeypatch, dataset):
    monkeypatch.delenv("MIMSSL_DATA")
    suite, *options = DENSE[dataset]
    code, out, err = evaluate(suite, dataset, "--set", *options, "--baselines", "--memory", "--out",
                              tmp_path / "records.jsonl")
    assert (code, err) == (0, "")
    records = read_records(tmp_path / "records.jsonl")
    assert (len(records) == len(out.splitlines())
            and all(record["metric"] in row for record, row in zip(records, out.splitlines())))
    names = set(suite.split(","))
    for name in ("encoder.safetensors", "untrained"):
        assert {record["evaluation"] for record in records if record["run"] == name} == names
    assert {record["evaluation"] for record in records
            if record["run"] == "pixels"} == {n for n in names if evaluations()[n].on_pixels}, (
                "raw pixels do what needs no encoder, and nothing else")
    for run_name in {record["run"] for record in records}:
        peaks = [record for record in records if record["run"] == run_name
                 and record["metric"] == "peak_mb"]
        assert (len(peaks) == len({record["evaluation"]
                                   for record in records if record["run"] == run_name})
                and all(record["value"] > 50 for record in peaks))
    scores = [record for record in records if record["metric"] != "peak_mb"]
    assert all(record["count"] > 0 and record["seconds"] > 0 and record["protocol"]
               for record in scores)
    for record in scores:  # every option is in the protocol, under its name or with what came of it
        for option in options:
            name, value = option.split("=")[0].split(".")[1], option.split("=")[1]
            if (option.startswith(f"{record['evaluation']}.")
                and name not in ("size", "epochs", "ks", "tune", "max_iter")):
                assert record["protocol"][name] == json.loads(value), (record, option)
    code, _, err = evaluate(suite, dataset, "--set", *options, "--baselines", "--out",
                            tmp_path / "again.jsonl", "--outcomes", tmp_path / "outcomes")
    assert (code, err) == (0, "")
    assert untimed(read_records(tmp_path / "again.jsonl")) == untimed(
        scores), "a second run gives other numbers"
    if dataset == "scenes-city": return
    outcomes = read_outcomes(tmp_path / "outcomes")
    for o in outcomes:
        assert (len(o.values) == o.record["count"]
                and 100 * o.values.mean() == pytest.approx(o.record["value"], abs=1e-3)), o.record
    assert {o.record["evaluation"] for o in outcomes} >= names & {
        "unsupervised_segmentation", "attention_jaccard", "davis"}


def test_pixels_alone_need_no_encoder(home, monkeypatch):
    "Baselines of raw pixels keep their features where an encoder would get new crops."
    code, out, err = evaluate("linear", "stripes", "--set", "linear.epochs=1",
                              "linear.augment=true", "--baselines")
    assert (code, err) == (0, "")
    found = {row.split()[0]: row for row in out.splitlines() if " top1 " in row}
    assert set(found) == {"encoder.safetensors", "pixels", "untrained"}


def test_rows_for_reading(home, tmp_path):
    code, out, _ = evaluate("similarity,prompt_segmentation", "coco_mini", "--set",
                            "prompt_segmentation.tune=2", "--memory")
    rows = {tuple(row.split()[2:4]): row for row in out.splitlines()}
    assert code == 0 and len(rows[
        "similarity", "auroc"].split()[4].partition(".")[2]) == 3, "a fraction has three decimals"
    both = [row for row in out.splitlines() if " miou " in row]
    assert (["centre=False" in both[0], "centre=True" in both[1]] == [True, True]
            and all("chosen_threshold=" in row and "size=72" in row for row in both))
    assert "layer" not in out, "what is the same everywhere is left out"
