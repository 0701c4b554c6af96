"""Detection scores: against a slow, literal reading of the rules on random boxes, and against the
published numbers where that data is found.
"""
import json
import numpy as np
import pytest
from mimssl.cli import main
from mimssl.data.settings import settings
from mimssl.evaluation.detection import coco_scores, lvis_scores

THRESHOLDS, RECALLS = np.linspace(.5, .95, 10), np.linspace(0, 1, 101)
SIZES = {"": (0, 1e10), "s": (0, 32 ** 2), "m": (32 ** 2, 96 ** 2), "l": (96 ** 2, 1e10)}


def overlap(d, g, crowd):
    "IoU of two boxes; with a crowd the share of `d` that lies in it."
    w, h = (max(0, min(d[i] + d[i + 2], g[i] + g[i + 2]) - max(d[i], g[i])) for i in (0, 1))
    return w * h / (d[2] * d[3] if crowd else d[2] * d[3] + g[2] * g[3] - w * h)


def matched(objects, found, threshold, low, high, lenient):
    "'hit', 'miss' or 'ignored' for each of `found`, which are sorted by score."
    ignored = lambda g: g.get("iscrowd", 0) or not low <= g["area"] <= high
    objects, taken, flags = sorted(objects, key=ignored), set(), []
    for d in found:
        best, match = threshold, None
        for g in objects:
            if g["id"] in taken and not g.get("iscrowd"): continue
            if match and not ignored(match) and ignored(g): break
            if (o := overlap(d["bbox"], g["bbox"], g.get("iscrowd", 0))) >= best: best, match = o, g
        if match: taken.add(match["id"])
        area = d["bbox"][2] * d["bbox"][3]
        flags.append(("ignored" if ignored(match) else "hit") if match else "ignored" if lenient
                     or not low <= area <= high else "miss")
    return flags, sum(not ignored(g) for g in objects)


def curve(flags, total):
    "AP and the last recall of 'hit' and 'miss' in the order of scores."
    tp = np.cumsum([f == "hit" for f in flags])
    if not len(tp): return 0, 0
    precision = np.maximum.accumulate((tp / np.arange(1, len(tp) + 1))[::-1])[::-1]
    place = np.searchsorted(tp / total, RECALLS)
    return np.mean([precision[i] if i < len(tp) else 0 for i in place]), tp[-1] / total


def slow(truth, results, lvis, per_image=300, per_class=None, limit=100):
    "All numbers of COCO (or LVIS) by name, worked out one threshold, size and class at a time."
    by_score = lambda rs: sorted(rs, key=lambda r: -r["score"])
    if lvis and per_image:
        results = [r for i in truth["images"]
                   for r in by_score([x for x in results if x["image_id"] == i["id"]])[:per_image]]
    if lvis and per_class:
        results = [r for c in truth["categories"] for r in by_score([
            x for x in results if x["category_id"] == c["id"]])[:per_class]]
    ap, ar = {}, {}
    for c in truth["categories"]:
        for size, (low, high) in SIZES.items():
            for t in THRESHOLDS:
                flagged, total = [], 0
                for image in sorted(truth["images"], key=lambda i: i["id"]):
                    of = lambda rows: [
                        r for r in rows
                        if (r["image_id"], r["category_id"]) == (image["id"], c["id"])]
                    objects, found = of(truth["annotations"]), by_score(of(results))
                    if lvis and not objects and c["id"] not in image["neg_category_ids"]: continue
                    found = found if lvis else found[:limit]
                    flags, n = matched(objects, found, t, low, high,
                                       lvis and c["id"] in image["not_exhaustive_category_ids"])
                    flagged, total = (flagged + [(d["score"], f) for d, f in zip(found, flags)],
                                      total + n)
                flags = [f for _, f in sorted(flagged, key=lambda row: -row[0]) if f != "ignored"]
                if total: ap[c["id"], size, t], ar[c["id"], size, t] = curve(flags, total)
    mean = lambda table, keep: np.mean([v for k, v in table.items() if keep(*k)] or [-1])
    numbers = {f"AP{size}": mean(ap, lambda _, s, t: s == size) for size in SIZES} | {
        f"AR{size}": mean(ar, lambda _, s, t: s == size) for size in SIZES}
    numbers |= {f"AP{100 * t:.0f}": mean(ap, lambda _, s, u: s == "" and u == t)
                for t in THRESHOLDS[[0, 5]]}
    if not lvis: return numbers
    groups = {f: {c["id"] for c in truth["categories"] if c["frequency"] == f} for f in "rcf"}
    return numbers | {f"AP{f}": mean(ap, lambda k, s, t: s == "" and k in groups[f]) for f in "rcf"}


def random_set(seed: int, count: int):
    """Ground truth and results with ties, crowds, borders of sizes, classes without objects and
    images without results.
    """
    rng = np.random.default_rng(seed)
    def box():
        w, h = rng.choice([8, 32, 50, 96, 140], 2) * rng.choice([1, 1, .9])
        return [float(v) for v in (*rng.integers(0, 100, 2), w, h)]
    cats, images = range(1, 6), range(1, 5)
    few = lambda: [c for c in cats if rng.random() < .3]
    truth = {"images": [
        {"id": i, "neg_category_ids": few(), "not_exhaustive_category_ids": few()} for i in images],
             "categories": [{"id": c, "name": f"c{c}", "frequency": "rccff"[c - 1]} for c in cats],
             "annotations": []}
    for n in range(1, 20):
        truth["annotations"].append({"id": n, "image_id": int(rng.choice(images)),
                                     "category_id": int(rng.choice(cats[:4])), "bbox": (b := box()),
                                     "area": b[2] * b[3] * rng.choice([1, .7]),
                                     "iscrowd": int(rng.random() < .1)})
    results = []
    for _ in range(count):
        a = truth["annotations"][rng.integers(19)]
        near, known = ([v + float(d) for v, d in zip(a["bbox"], rng.choice([0, 2, 5], 4))],
                       rng.random() < .6)
        results.append({"image_id": a["image_id"] if known else int(rng.choice(images)),
                        "category_id": a["category_id"] if known else int(rng.choice(cats)),
                        "bbox": near if known else box(), "score": float(rng.integers(1, 20)) / 20})
    return truth, results


@pytest.mark.parametrize("seed, count", [(0, 20), (1, 40), (2, 60), (3, 80), (4, 1), (5, 1400)])
def test_random_boxes(seed, count):
    truth, results = random_set(seed, count)
    found, expected = coco_scores(truth, results).summary, slow(truth, results, lvis=False)
    assert found == pytest.approx(
        {k: expected["AR" if k == "AR100" else k] for k in found if k not in ("AR1", "AR10")}
        | {f"AR{n}": slow(truth, results, lvis=False, limit=n)["AR"] for n in (1, 10)}, abs=1e-9)
    no_crowd = truth | {"annotations": [a | {"iscrowd": 0} for a in truth["annotations"]]}
    assert lvis_scores(truth, results).summary == pytest.approx(
        slow(no_crowd, results, lvis=True), abs=1e-9)
    fixed = dict(per_image=None, per_class=25)
    assert lvis_scores(truth, results, **fixed).summary == pytest.approx(
        slow(no_crowd, results, lvis=True, **fixed), abs=1e-9)


@pytest.fixture
def refs():
    "The folder of published annotations and results."
    folder = settings().real and settings().real / "eval_refs"
    if not folder or not folder.is_dir():
        pytest.skip("there is no eval_refs in the folder of real data sets")
    return folder


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_published_numbers(refs, kind):
    named = lambda numbers: pytest.approx({k.replace("@300", ""): v for k, v in numbers.items()},
                                          abs=1e-9)
    coco, lvis = (json.loads((refs / name).read_text())[kind]
                  for name in ("coco/expected.json", "lvis/expected_made.json"))
    assert coco_scores(refs / "coco/instances_val2014_100.json",
                       refs / f"coco/instances_val2014_fake{kind}100_results.json",
                       kind).summary == named(coco)
    assert lvis_scores(refs / "lvis/lvis_val_100.json", refs / f"lvis/made_{kind}_results.json",
                       kind).summary == named(lvis)


def test_the_command_refuses(tmp_path, capsys):
    truth, results = random_set(0, 5)
    for name, content in (("gt", truth), ("dt", results),
                          ("alien", [results[0] | {"image_id": 99}]), ("none", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("[")
    def run(truth, results, *more, kind="coco"):
        code = main(["score", "--kind", kind, "--truth", str(tmp_path / truth), "--results",
                     str(tmp_path / results), *more])
        return code, *capsys.readouterr()
    for argv, sentence in ((("gt.json", "alien.json"), "result 0 is of image 99"),
                           (("gt.json", "broken.json"), "cannot be read"),
                           (("no.json", "dt.json"), "no such file"),
                           (("dt.json", "gt.json"), "not in COCO's format"),
                           (("gt.json", "dt.json", "--iou", "segm"), "has no 'height'")):
        code, out, err = run(*argv)
        assert (code, out, err.count("\n")) == (1, "", 1) and sentence in err
    for kind, option, sentence in (("coco", "--per-class", "--per-class is for lvis"),
                                   ("davis", "--iou", "--iou is for coco, ovd, lvis"),
                                   ("lvis", "--per-image", "give 1 or more, or all")):
        code, out, err = run("gt.json", "dt.json", option, "bbox" if option == "--iou" else "0",
                             kind=kind)
        assert code == 1 and sentence in err
    code, out, err = run("gt.json", "none.json", "--out", str(tmp_path / "records.jsonl"),
                         kind="lvis")
    assert (code, err) == (0, "") and "box_apr" in out
    assert json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])["value"] == 0


def scored(tmp_path, capsys, *argv):
    "metric -> value of the command's records."
    (out := tmp_path / "scored.jsonl").unlink(missing_ok=True)
    assert main(["score", *argv, "--out", str(out)]) == 0, capsys.readouterr().err
    return {line["metric"]: line["value"] for line in map(json.loads, out.read_text().splitlines())}


def test_the_command_s_options(tmp_path, capsys):
    truth, results = random_set(3, 80)
    for name, content in (("gt", truth), ("dt", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "novel.txt").write_text("c1\nc2\n")
    files = ["--truth", str(tmp_path / "gt.json"), "--results", str(tmp_path / "dt.json")]
    fixed = scored(tmp_path, capsys, "--kind", "lvis", *files, "--per-image", "all", "--per-class",
                   "5")
    assert fixed["box_ap"] == pytest.approx(
        100 * lvis_scores(truth, results, per_image=None, per_class=5).summary["AP"])
    assert fixed != scored(tmp_path, capsys, "--kind", "lvis", *files)
    split = scored(tmp_path, capsys, "--kind", "ovd", *files, "--novel",
                   str(tmp_path / "novel.txt"), "--base", "c3", "c4")
    classes = coco_scores(truth, results).classes
    assert (
        split["novel_ap50"] == pytest.approx(50 * (classes["c1"]["AP50"] + classes["c2"]["AP50"]))
        and {*split} == {"novel_ap50", "base_ap50", "all_ap50"})


def test_masks_without_boxes(tmp_path, capsys):
    "pycocotools takes results with empty boxes for masks alone."
    from pycocotools import mask
    square = np.zeros((60, 80), np.uint8, order="F")
    square[10:40, 20:60] = 1
    code = mask.encode(square)
    code["counts"] = code["counts"].decode()
    box = {"image_id": 1, "category_id": 1, "bbox": [20, 10, 40, 30], "segmentation": code}
    truth = {"images": [{"id": 1, "height": 60, "width": 80}],
             "categories": [{"id": 1, "name": "a"}],
             "annotations": [box | {"id": 1, "area": 1200, "iscrowd": 0}]}
    for name, content in (("gt", truth), ("dt", [box | {"bbox": [], "score": .9}])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = scored(tmp_path, capsys, "--kind", "coco", "--truth", str(tmp_path / "gt.json"),
                   "--results", str(tmp_path / "dt.json"), "--iou", "bbox", "segm")
    assert (found["mask_ap"], found["box_ap"],
            found["mask_apm"]) == (pytest.approx(100), pytest.approx(100), pytest.approx(100))


def test_masks_of_videos(tmp_path, capsys):
    from mimssl.data.sources import open_dataset
    if not (settings().data / "scenes").is_dir():
        pytest.skip("the scenes are not there; python -m mimssl data")
    videos = open_dataset("scenes-davis", "val")
    for sequence, files in zip(videos.sequences, videos.masks):
        (tmp_path / "masks" / sequence).mkdir(parents=True)
        for file in files:
            (tmp_path / "masks" / sequence / file.name).write_bytes(file.read_bytes())
    argv = ["--kind", "davis", "--truth", "scenes-davis", "--results", str(tmp_path / "masks")]
    found = scored(tmp_path, capsys, *argv)
    assert (found["jf"], found["j"], found["f"], found["j_decay"]) == (100, 100, 100, 0)
    for file in (tmp_path / "masks").glob("*/*.png"):
        # nothing moves
        file.write_bytes((tmp_path / "masks" / file.parent.name / "00000.png").read_bytes())
    assert 0 < scored(tmp_path, capsys, *argv)["jf"] < 99
    for argv, sentence in ((["scenes-davis", str(tmp_path)], "there is no folder of results"),
                           (["scenes-coco", str(tmp_path)], "needs videos with masks"),
                           (["davis", str(tmp_path)], "data set 'davis' is unknown")):
        assert (main(["score", "--kind", "davis", "--truth", argv[0], "--results", argv[1]]) == 1
                and sentence in capsys.readouterr().err)
