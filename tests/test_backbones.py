"""Any vision network of timm: its features are timm's own, or it is refused by name.

MIMSSL_ALL_BACKBONES=1 walks the long list.
"""
import json, os
import pytest, timm, torch
from mimssl.data.settings import BadInput
from mimssl.data.sources import Davis, Source
from mimssl.evaluation.dense import patch_grid
from mimssl.evaluation.suite import evaluate
from mimssl.parts.backbone import Backbone, as_encoder
from support import ROOT
from support.backbones import LONG, OTHERS, QUICK, row_of

ALL = QUICK + (LONG + OTHERS if os.environ.get("MIMSSL_ALL_BACKBONES") else [])


def check(row: dict):
    "The features of a row are timm's and its patches lie on a grid, or a sentence names it."
    name = row["model"]
    if "off" in row: assert row["off"] <= 1e-4, f"{name} is off by {row['off']:.1e}"
    if "refused" in row:
        assert name in OTHERS and f"'{name}'" in row["refused"] and row["refused"].endswith(".")
    else:
        side = row["size"] // row["patch"]
        assert row["grid"] == [side, side] and row["finite"] and "off" in row, row


@pytest.mark.parametrize("name", ALL)
def test_features_are_those_of_timm(name): check(row_of(name))


def test_the_table_holds_every_network():
    rows = json.loads((ROOT / "nbs/parts/backbones.json").read_text())
    assert [row["model"] for row in rows] == QUICK + LONG + OTHERS
    for row in rows: check(row)
    assert sum("refused" not in row for row in rows) >= 48


def test_rotary_positions_and_registers_at_two_sizes():
    """DINOv3's form: the tokens of a smaller image are those of the network set to that size by
    timm.
    """
    torch.manual_seed(0)
    kw = dict(num_classes=0, depth=2)
    model = timm.create_model("vit_small_patch16_dinov3", **kw).eval()
    encoder = as_encoder(model, "vit_small_patch16_dinov3")
    assert isinstance(encoder, Backbone) and encoder.num_prefix_tokens == 5
    for size in (256, 64):
        x = torch.randn(1, 3, size, size)
        same = timm.create_model("vit_small_patch16_dinov3", img_size=size, **kw).eval()
        same.load_state_dict(model.state_dict())
        with torch.no_grad(): want = same.forward_features(x)[:, 5:]
        from mimssl.data.views import IMAGENET_MEAN, IMAGENET_STD
        encoder.pixel_stats = tuple(IMAGENET_MEAN), tuple(IMAGENET_STD)
        assert (patch_grid(encoder, x).flatten(1, 2) - want).abs().max() <= 1e-4


def test_what_cannot_work_is_refused_by_name():
    with pytest.raises(BadInput, match="'crossvit_tiny_240'.*give squares of whole patches"):
        name = "crossvit_tiny_240"
        patch_grid(as_encoder(timm.create_model(name, num_classes=0), name),
                   torch.zeros(1, 3, 240, 240))


@pytest.mark.parametrize("model, suite, dataset, options, message", [
    ("resnet10t", "davis", "scenes-davis", dict(short_side=96, multiple=32),
     "asked for images of 96x160 pixels; give squares of whole patches of 32, or take a plain ViT"),
    ("resnet10t", "semseg", "scenes-city", dict(slide=False, crop=64, epochs=1),
     "asked for images of .* pixels; give squares of whole patches of 32"),
    ("levit_128s", "semseg", "scenes-city", dict(crop=64, epochs=1), "takes no images of 64"),
    ("levit_128s", "semseg_knn", "scenes-city", dict(size=64), "takes no images of 64"),
    ("crossvit_tiny_240", "unsupervised_segmentation", "scenes-coco", dict(size=238, norm=True),
     "'crossvit_tiny_240' gives several outputs"),
    ("volo_d1_224", "prompt_segmentation", "scenes-coco", dict(size=224), "have no grid"),
    ("resnet10t", "similarity", "scenes-coco", dict(keep_aspect=True), "keep_aspect needs a plain"),
    ("levit_128s", "knn", "scenes", {}, "takes no images of 64")])
def test_it_is_refused_before_a_picture_is_read(monkeypatch, alone, model, suite, dataset, options,
                                                message):
    def read(self, i): raise AssertionError("a picture was read")
    for source in (Source, Davis): monkeypatch.setattr(source, "__getitem__", read)
    monkeypatch.chdir(ROOT)
    with pytest.raises(BadInput, match=message):
        evaluate(f"untrained:{model}", suite, dataset, options={suite: options}, progress=False,
                 features=dict(size=64) if suite == "knn" else None)
