"""Any vision network of timm: its features are timm's own, or it is refused by name.

MIMSSL_ALL_BACKBONES=1 walks the long list.
"""
import os
import pytest, timm, torch
from mimssl.data.settings import BadInput
from mimssl.evaluation.dense import patch_grid
from mimssl.evaluation.features import FeatureSpec, embed, resolve
from mimssl.parts.backbone import Backbone, as_encoder

QUICK = ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224",
         "vit_pwee_patch16_reg1_gap_256", "vit_tiny_r_s16_p8_224", "convnext_atto", "resnet10t",
         "swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224"]
LONG = ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3", "eva02_tiny_patch14_336",
        "beit_base_patch16_224", "beitv2_base_patch16_224", "samvit_base_patch16_224",
        "deit3_small_patch16_224", "vit_small_patch16_18x2_224", "vit_small_r26_s32_224",
        "vit_base_r50_s16_224", "naflexvit_base_patch16_gap", "vit_relpos_small_patch16_224",
        "vit_srelpos_small_patch16_224", "vit_relpos_small_patch16_rpn_224",
        "vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_224",
        "vit_pe_core_tiny_patch16_384", "vit_wee_patch16_reg1_gap_256",
        "vit_dwee_patch16_reg1_gap_256", "vit_little_patch16_reg4_gap_256",
        "vit_base_patch16_siglip_224", "vit_base_patch16_clip_224", "flexivit_small",
        "vit_base_patch16_rope_reg1_gap_256", "vit_medium_patch16_gap_240", "vitamin_small_224",
        "mvitv2_tiny", "tiny_vit_5m_224", "convnextv2_atto", "resnet18", "resnet50", "regnety_002",
        "swinv2_tiny_window8_256", "efficientnet_b0", "mobilenetv3_small_050", "cait_xxs24_224",
        "mixer_s32_224", "twins_svt_small", "csatv2"]
ALL = QUICK + (LONG if os.environ.get("MIMSSL_ALL_BACKBONES") else [])


def own(model, x, pooling: str) -> torch.Tensor:
    "timm's class token, or its pooled features."
    with torch.no_grad(): tokens = model.forward_features(x)
    if pooling == "cls": return tokens[:, 0]
    with torch.no_grad(): return model.forward_head(tokens, pre_logits=True)


@pytest.mark.parametrize("name", ALL)
def test_features_are_those_of_timm(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    encoder = as_encoder(model, name)
    x = torch.randn(1, 3, *encoder.patch_embed.img_size)
    pooling = "cls" if encoder.has_class_token else "mean"
    found = embed(encoder, x, resolve(FeatureSpec(pooling=pooling), encoder))
    if pooling == "cls" and getattr(model, "fc_norm", None) is not None:
        with torch.no_grad(): want = model.fc_norm(own(model, x, "cls"))
    else: want = own(model, x, pooling)
    assert (found - want).abs().max() <= 1e-4, f"off by {(found - want).abs().max():.1e}"


@pytest.mark.parametrize("name", ALL)
def test_patches_lie_on_a_grid(name):
    torch.manual_seed(0)
    encoder = as_encoder(timm.create_model(name, num_classes=0).eval(), name)
    patch = encoder.patch_embed.patch_size[0]
    size = encoder.patch_embed.img_size[0] // patch * patch
    grid = patch_grid(encoder, torch.randn(1, 3, size, size))
    assert grid.shape[:3] == (1, size // patch, size // patch) and grid.isfinite().all()


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
