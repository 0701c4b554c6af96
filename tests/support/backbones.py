"""Features of timm's networks as evaluations read them, beside timm's own.

`python -m tests.support.backbones FILE` writes a row for each network of both lists to FILE, which
the notebook of backbones shows.
"""
import sys, time
import timm, torch
from mimssl.data.files import write_json
from mimssl.data.settings import BadInput
from mimssl.evaluation.dense import check_sizes, patch_grid
from mimssl.evaluation.features import FeatureSpec, embed, resolve
from mimssl.parts.backbone import as_encoder

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
OTHERS = ["crossvit_tiny_240", "volo_d1_224", "levit_128", "coat_tiny", "pit_ti_224",
          "visformer_tiny",
          "gcvit_xxtiny", "edgenext_xx_small", "mobilevit_xxs", "poolformer_s12", "nest_tiny",
          "maxvit_pico_rw_256", "efficientformer_l1", "fastvit_t8", "hiera_tiny_224",
          "tnt_s_legacy_patch16_224", "convit_tiny", "davit_tiny", "repvit_m1"]


def own(model, x, pooling: str) -> torch.Tensor:
    """timm's class token, or its pooled features; of a network that pools by attention ('map') the
    mean of its tokens, as the option says.
    """
    with torch.no_grad(): tokens = model.forward_features(x)
    if pooling != "cls" and getattr(model, "global_pool", "") == "map": return tokens.mean(1)
    if pooling != "cls":
        with torch.no_grad(): return model.forward_head(tokens, pre_logits=True)
    with torch.no_grad(): return getattr(model, "fc_norm", torch.nn.Identity())(tokens[:, 0])


def row_of(name: str) -> dict:
    """How far the features of one image are from timm's, and the grid of its patches; with random
    weights. Of a network that is refused: the sentence.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    row = {"model": name, "class": type(model).__name__,
           "parameters": sum(p.numel() for p in model.parameters())}
    try:
        encoder = as_encoder(model, name)
        side, patch = encoder.patch_embed.img_size[0], encoder.patch_embed.patch_size[0]
        x = torch.randn(1, 3, *encoder.patch_embed.img_size)
        pooling = "cls" if encoder.has_class_token else "mean"
        found = embed(encoder, x, resolve(FeatureSpec(pooling=pooling), encoder))
        off = (found - own(model, x, pooling)).abs().max().item()
        row |= {"size": side, "patch": patch, "prefix": encoder.num_prefix_tokens, "off": off}
        size = side // patch * patch
        check_sizes(encoder, [(size, size)])
        grid = patch_grid(encoder, torch.randn(1, 3, size, size))
        row |= {"grid": list(grid.shape[1:3]), "finite": bool(grid.isfinite().all())}
    except BadInput as e: row["refused"] = str(e)
    return row


def main(file: str):
    torch.set_num_threads(1)
    rows = []
    for name in QUICK + LONG + OTHERS:
        begin = time.perf_counter()
        try: rows.append(row_of(name))
        except Exception as e: rows.append({"model": name, "error": repr(e)})
        print(f"{time.perf_counter() - begin:.1f} s", rows[-1], flush=True)
        write_json(file, rows)


if __name__ == "__main__": main(*sys.argv[1:])
