"""Video object segmentation against numbers of the official code: DAVIS-2017's evaluation and
DINO's propagation.
"""
import json
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image
from mimssl.data.scenes import davis_palette
from mimssl.data.settings import BadInput
from mimssl.data.sources import locate, open_dataset
from mimssl.evaluation.evaluation import Bench, PixelBench
from mimssl.evaluation.davis import (MEASURES, Propagation, davis_scores, eval_davis, follow,
                                     label_maps, object_scores, propagate, read_out, score_folder)
from mimssl.parts.encoder import EncoderConfig, build_encoder, init_xavier


@pytest.fixture
def reference():
    "The folder of the real videos with recorded scores."
    try: root = locate("davis_mini")
    except BadInput: pytest.skip("the data set davis_mini is not here")
    if not (root / "reference_jf.json").is_file(): pytest.skip("davis_mini has no recorded scores")
    return root


def agrees(rows, means, expected):
    "All numbers of `expected`, as the official code wrote them, to 1e-6."
    assert means["jf"] == pytest.approx(expected["J&F"], abs=1e-6)
    for m in "jf":
        wanted = expected[m.upper()]
        assert {f"{r['sequence']}_{r['object']}": r[m]
                for r in rows} == pytest.approx(wanted["per_object"], abs=1e-6)
        for name, key in (("mean", m), ("recall", f"{m}_recall"), ("decay", f"{m}_decay")):
            if name in wanted: assert means[key] == pytest.approx(wanted[name], abs=1e-6)


def test_real_films(reference):
    expected = json.loads((reference / "reference_jf.json").read_text())
    agrees(*score_folder(open_dataset("davis_mini", "val"), reference / "results_osvos"),
           expected["osvos"])
    for split, name in (("val", "copy_first_frame"), ("multi", "copy_first_frame_multi_train")):
        videos = list(open_dataset("davis_mini", split))
        copied = {f["name"]: [f["mask"]] * len(f["masks"]) for f in videos}
        agrees(*davis_scores({f["name"]: f["masks"] for f in videos}, copied), expected[name])


def drawn_masks(T=14, h=120, w=214):
    """Two moving objects and a prediction that drifts; one object is void in frame 9, and frame 4
    is predicted empty.
    """
    y, x = np.mgrid[:h, :w]
    def ids(t, dy, dx, grow):
        mask = np.zeros((h, w), int)
        mask[((y - 60 - dy) / (30 + grow)) ** 2
             + ((x - 40 - 8 * t - dx) / (22 + grow)) ** 2 < 1] = 1
        mask[(abs(y - 90 + 4 * t + dy) < 14) & (abs(x - 150 + dx) < 18 + t)] = 2
        return mask
    truth = [ids(t, 0, 0, 0) for t in range(T)]
    found = [ids(t, t // 3, -(t // 2), t % 5 - 1) for t in range(T)]
    truth[9][truth[9] == 2] = 255
    found[4][:] = 0
    return truth, found


def test_drawn_masks():
    rows = object_scores(*drawn_masks())
    expected = [[0.72809183, 0.91666667, 0.0342321, 0.47328465, 0.41666667, 0.39056845],
                [0.66212192, 0.83333333, 0.21405038, 0.511007, 0.58333333, 0.70534026]]
    for row, numbers in zip(rows, expected, strict=True):
        assert [row[m] for m in MEASURES] == pytest.approx(numbers, abs=1e-6)
    alone = object_scores(*[[np.where(m == 1, 1, 0) for m in masks] for masks in drawn_masks()])
    assert alone == rows[:1], "a single object scores the same"


def drawn_film(T=10, h=96, w=160):
    "Images (h, w, 3) uint8 of two coloured things that cross, and the mask of frame 0."
    y, x = np.mgrid[:h, :w]
    images, masks = [], []
    for t in range(T):
        image = np.stack([90 + 60 * np.sin(x / 11 + .2 * t) * np.cos(y / 17),
                          100 + 50 * np.sin(x / 23 - y / 13), 120 + 40 * np.cos(y / 9 + .1 * t)], 2)
        disc, box = ((y - 40 - 2 * t) ** 2 + (x - 40 - 6 * t) ** 2 < 22 ** 2,
                     (abs(y - 60 + t) < 16) & (abs(x - 120 + 3 * t) < 14))
        image[disc] = image[disc] * .3 + [170, 20, 10]
        image[box] = image[box] * .3 + [10, 30, 150]
        images.append(image.round().astype(np.uint8))
        masks.append(np.where(box, 2, np.where(disc, 1, 0)))
    return images, masks[0]


def patch_colours(image, p=8):
    "Centred mean colours of patches and a constant, of length 1: (h, w, 4)."
    x = torch.from_numpy(image).double().view(image.shape[0] // p, p, image.shape[1] // p, p,
                                              3).mean((1, 3)) / 255 - .5
    return F.normalize(torch.cat([x, torch.full_like(x[..., :1], .2)], 2), dim=-1)


def test_propagation_as_the_script():
    "Pixels of each object in each frame, as DINO's script found them on the same features."
    images, mask = drawn_film()
    first = label_maps(mask, 12, 20).double()
    for radius, context, expected in [
            (12, 7, [[1469, 650], [1401, 755], [1529, 823], [1588, 779],
                     [1417, 702], [1138, 497], [976, 221], [508, 56], [823, 9]]),
            (3, 2, [[1533, 758], [1447, 795], [1558, 867], [1604, 785], [1423, 721], [1138, 624],
                    [960, 377], [565, 126], [867, 589]]),
            (0, 7, [[1467, 627], [1382, 747], [1527, 810], [1575, 775], [1415, 701], [1138, 488],
                    [973, 220], [500, 51], [817, 5]])]:
        o = Propagation(radius=radius, context=context, nan_channel=True)
        found = [read_out(maps, 8, 96, 160, True)
                 for maps in follow(map(patch_colours, images), first, o)]
        assert [[int((m == i).sum()) for i in (1, 2)] for m in found] == expected


@pytest.fixture
def videos(tmp_path, monkeypatch):
    "A data set of one video in the DAVIS layout, and a bench to score it."
    images, mask = drawn_film(T=4)
    root = tmp_path / "davis2017"
    for folder in ("JPEGImages/480p/drawn", "Annotations/480p/drawn", "ImageSets/2017"):
        (root / folder).mkdir(parents=True)
    for t, image in enumerate(images):
        Image.fromarray(image).save(root / f"JPEGImages/480p/drawn/{t:05}.jpg")
        save(root, t, mask)
    (root / "ImageSets/2017/val.txt").write_text("drawn\n")
    monkeypatch.setenv("MIMSSL_DATA", str(tmp_path))
    vit = init_xavier(build_encoder(EncoderConfig(embed_dim=32, depth=1, num_heads=2, patch_size=8,
                                                  image_size=64)))
    return root, lambda **options: eval_davis(
        Bench(vit, "davis2017", "cpu", progress=False), short_side=96, multiple=8, **options)


def save(root, t, mask, palette=True):
    image = Image.fromarray(mask.astype(np.uint8))
    if palette: image.putpalette(davis_palette())
    image.save(root / f"Annotations/480p/drawn/{t:05}.png")


def test_in_the_suite(videos, tmp_path):
    root, run = videos
    scores = {m: v for m, v, *_ in run(save=str(tmp_path / "out"))}
    assert set(scores) == {"jf", *MEASURES} and 0 < scores["jf"] < 100
    assert score_folder(open_dataset("davis2017", "val"),
                        tmp_path / "out")[1]["jf"] * 100 == pytest.approx(scores["jf"])
    with Image.open(tmp_path / "out/drawn/00002.png") as image:
        assert (image.mode, image.getpalette()) == ("P", davis_palette())


def test_colours_alone(videos):
    "Raw pixels follow the crossing things by the colours of their patches."
    root, _ = videos
    scores = eval_davis(PixelBench("davis2017", device="cpu", progress=False), short_side=96,
                        multiple=8)
    assert (scores[0][0] == "jf" and scores[0][3]["features"] == "colours"
            and not {"layer", "norm", "kind", "positions"} & set(scores[0][3]))
    (metric, value, count, _, outcomes), *_ = scores
    assert (len(outcomes) == count == 2 and set(outcomes) == {"drawn/1", "drawn/2"}
            and 100 * sum(outcomes.values()) / 2 == pytest.approx(value))
    video = open_dataset("davis2017", "val")[0]
    moved = propagate(None, video["frames"], video["mask"], Propagation(short_side=96, multiple=8))
    assert [int((m == 1).sum()) > 500 for m in moved] == [True] * 4


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda root: save(root, 2, np.zeros((96, 150))), "not the size of its image"),
        (
            lambda root: save(root, 0, np.zeros((96, 160)), palette=False),
            "00000.png: has no palette to colour masks with",
        ),
        (
            lambda root: [f.unlink() for f in root.glob("*/480p/drawn/0000[23].*")],
            "2 frames; the first and the last are not scored",
        ),
        (
            lambda root: (root / "Annotations/480p/drawn/00001.png").unlink(),
            "frame 00001 has no partner",
        ),
        (
            lambda root: (
                Image.new("RGB", (160, 104)).save(root / "JPEGImages/480p/drawn/00003.jpg"),
                save(root, 3, np.zeros((104, 160))),
            ),
            "not the size of 00000.jpg",
        ),
        (lambda root: save(root, 0, np.zeros((96, 160))), "nothing to score"),
    ],
)
def test_bad_films(videos, tmp_path, damage, sentence):
    root, run = videos
    damage(root)
    with pytest.raises(BadInput) as error: run(save=str(tmp_path / "out"))
    assert sentence in str(error.value) and "\n" not in str(error.value)
