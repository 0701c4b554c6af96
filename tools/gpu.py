"""What an accelerator must do, in at most eight minutes: `make gpu`, or python tools/gpu.py.

Parity in fp32 without TF32, bf16, exact resume, loading processes, compilation, a process group of
one, a table of costs at ViT-S and ViT-B, and a short training of three methods. On a CPU all parts
run that can; a part that does not says why. Data: the generated pictures, or some that are drawn
for the purpose.
"""
import argparse, io, math, os, socket, sys, tempfile, time, warnings
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import torch.distributed as dist
from timm.models.vision_transformer import Block
from torch.nn.parallel import DistributedDataParallel
from mimssl.data.scenes import generate
from mimssl.data.settings import pick_device, settings
from mimssl.data.sources import open_dataset
from mimssl.data.views import seeded
from mimssl.methods.mae import MAE
from mimssl.methods.method import (At, find_method, load_official, make_method, method_names,
                                   tiny_forms)
from mimssl.parts.draws import Draws
from mimssl.parts.distributed import gather, mean_over_processes
from mimssl.parts.encoder import EncoderConfig
from mimssl.parts.golden import check_scalar, golden_case, golden_draws, golden_state
from mimssl.training.bench import HEADER, Stepper, bench, device_name, row_text, seconds
from mimssl.training.flops import MIDDLE, random_batch
from mimssl.training.loop import Run, batches
from mimssl.training.recipes import Optimiser, Recipe

TINY = EncoderConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32)
LIMIT = 480.   # seconds for everything
# how far a loss in bf16 may be off; nearest neighbours of a fresh encoder are nearly tied, so
# rounding chooses others
BF16, BF16_NEIGHBOURS = .03, .25


class Skip(Exception):
    "Why a part does not run here."


class Machine:
    "The device, whether it is in a hurry, and what it measured."
    def __init__(self, device: torch.device, quick: bool):
        self.device, self.quick, self.rate = device, quick, 0.
        self.fast = device.type != "cpu"

    def bf16(self) -> bool:
        return not self.fast or torch.cuda.is_bf16_supported(including_emulation=False)


def forms(machine) -> list[tuple[str, str, dict]]:
    "(method, form, options): all, or the plain form of each in a hurry."
    return [(name, form, options) for name in method_names()
            for form, options in tiny_forms(name).items() if not (machine.quick and form)]


class SameDraws(Draws):
    "Draws that are the same on every device: noise too comes from the CPU."
    def noise(self, name, B, *shape): return self.randn(name, B, *shape)


def one_step(name: str, options: dict, device, precision="fp32", size: int = 8):
    "Loss and norm of the gradient of a fresh method's step: the same weights, images and draws."
    with seeded(0, name): method = make_method(name, TINY, options).to(device).train()
    with seeded(0, "batch"): batch = random_batch(method.views(), size)
    batch = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in batch.items()}
    method.before_step(MIDDLE)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        loss = method(batch, SameDraws(0, MIDDLE.step, device=device), MIDDLE)["loss"]
    loss.backward()
    norms = [p.grad.float().norm() for p in method.parameters() if p.grad is not None]
    return loss.float().item(), torch.stack(norms).norm().item()


def speed(machine) -> str:
    "The rate of matrix products."
    n = 512 if not machine.fast else 8192
    rates = {}
    for kind in (torch.float32, torch.bfloat16):
        x = torch.randn(n, n, device=machine.device, dtype=kind)
        for _ in range(3): x @ x
        took = min(seconds(lambda: x @ x, machine.device) for _ in range(5))
        rates[kind] = 2 * n ** 3 / took / 1e12
    machine.rate = rates[torch.bfloat16]
    return (f"{device_name(machine.device)}, torch {torch.__version__}; matrix products fp32 "
            f"{rates[torch.float32]:.2f}, bf16 {machine.rate:.2f} TFLOP/s")


def parity(machine) -> str:
    "MAE against official numbers, and every method against its own numbers on the CPU."
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    case = golden_case("mae_normpix_on")
    net = case["config"]["net"]
    encoder = EncoderConfig(embed_dim=net["embed_dim"], depth=net["depth"],
                            num_heads=net["num_heads"], patch_size=net["patch_size"],
                            image_size=net["img_size"])
    model = MAE(encoder, mask_ratio=case["config"]["mask_ratio"], norm_pix=True,
                decoder_dim=net["decoder_embed_dim"], decoder_depth=net["decoder_depth"],
                decoder_heads=net["decoder_num_heads"])
    load_official(model, golden_state(case), ignore=("pos_embed", "decoder_pos_embed"))
    d = {k: x.to(machine.device) for k, x in golden_draws(case).items()}
    draws = Draws(0, 0, given={"mask": d["noise"][:, None]}, device=machine.device)
    loss = model.to(machine.device)({"global": d["img"][None]}, draws, At())["loss"]
    check_scalar("loss", loss, case["expected"]["loss"])
    if not machine.fast: return "MAE has the official loss; others are compared with the CPU"
    worst = {}
    for name, form, options in forms(machine):
        here, there = one_step(name, options, machine.device), one_step(name, options, "cpu")
        worst[f"{name} {form}"] = max(abs(a - b) / max(1., abs(b)) for a, b in zip(here, there))
    case = max(worst, key=worst.get)
    assert worst[case] < 2e-4, f"{case}: differs from the CPU by {worst[case]:.1e}"
    return (f"MAE has the official loss; {len(worst)} forms as on the CPU, {case} off by "
            f"{worst[case]:.0e}")


def bf16(machine) -> str:
    "Steps in bf16 are finite and near those in fp32."
    if not machine.bf16(): raise Skip("this accelerator does not compute in bf16")
    worst = {}
    for name, form, options in forms(machine):
        full, half = (one_step(name, options, machine.device, p) for p in ("fp32", "bf16"))
        assert all(map(math.isfinite, half)), f"{name} {form}: loss and gradient are {half} in bf16"
        off = worst[f"{name} {form}"] = abs(half[0] - full[0]) / max(1., abs(full[0]))
        most = BF16_NEIGHBOURS if name in ("mae_ct", "mae_nnclr") else BF16
        assert off < most, f"{name} {form}: the loss differs by {100 * off:.1f} % in bf16"
    case = max(worst, key=worst.get)
    return f"{len(worst)} forms finite, {case} off by {100 * worst[case]:.2f} %"


def tiny_run(name: str) -> Run:
    "A run of a method's plain form."
    recipe = Recipe(name, name, encoder=TINY, options=tiny_forms(name)[""], epochs=4, batch_size=8,
                    optimiser=Optimiser(lr=1e-3, warmup_epochs=1))
    return Run(recipe, 0, open_dataset("scenes", "train")).start()


def stream_of(run: Run, steps: int):
    "The batches of the next `steps`."
    return batches(run.dataset, run.views, run.recipe, 0, run.step, run.step + steps, run.device,
                   run.items)


def advance(run: Run, steps: int) -> Run:
    "`run`, some steps later."
    stream = stream_of(run, steps)
    for _ in range(steps): run.advance(stream.__next__)
    return run


def resume(machine) -> str:
    "A run that was saved and restored ends with the bits of one that was not."
    names = ("moca", "mae_ct", *(() if machine.quick else ("mae", "mmc", "ibot", "latent_mim")))
    for name in names:
        whole, first, file = advance(tiny_run(name), 4), advance(tiny_run(name), 2), io.BytesIO()
        torch.save(first.state(), file)
        file.seek(0)
        second = tiny_run(name)
        second.restore(torch.load(file, map_location=machine.device, weights_only=True), "memory")
        other = advance(second, 2).method.state_dict()
        for key, x in whole.method.state_dict().items():
            assert torch.equal(x, other[key]), f"{name}: {key} differs after a restart"
    return f"{', '.join(names)}: 4 steps = 2 + 2, to the bit"


def workers(machine) -> str:
    "Batches are the same whoever loads them."
    def first(count: int):
        os.environ["MIMSSL_WORKERS"] = str(count)
        try: return list(stream_of(tiny_run("dino"), 3))
        finally: del os.environ["MIMSSL_WORKERS"]
    for a, b in zip(first(0), first(2)):
        assert all(torch.equal(x, b[k]) for k, x in a.items() if isinstance(x, torch.Tensor))
    return "3 batches of DINO's crops, by none and by 2 loading processes, to the bit"


def compiled(machine) -> str:
    "Compiled blocks give the loss of those that are not; in a hurry, without code for the device."
    losses, backend = [], "aot_eager" if machine.quick else "inductor"
    for compile in (False, True):
        with seeded(0, "mae"): method = make_method("mae", TINY, tiny_forms("mae")[""])
        with seeded(0, "batch"): step = Stepper(method, 8, machine.device)
        for block in method.modules() if compile else []:
            if isinstance(block, Block): block.compile(backend=backend)
        step()
        losses.append(method(step.batch, Draws(0, 0, device=machine.device), MIDDLE)["loss"].item())
    assert abs(losses[1] - losses[0]) < 1e-4, f"compiled {losses[1]}, not compiled {losses[0]}"
    return f"{backend}: loss {losses[1]:.6f}, not compiled {losses[0]:.6f}"


def group(machine) -> str:
    "A process group of one: collectives, and a step under DDP."
    backend = "nccl" if machine.device.type == "cuda" else "gloo"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        x = torch.ones(3, 2, device=machine.device)
        rows = [torch.empty_like(x)]
        dist.all_gather(rows, x)
        dist.all_reduce(x)
        assert torch.equal(rows[0], x) and torch.equal(gather(x), mean_over_processes(x))
        method = make_method("mae", TINY, tiny_forms("mae")[""]).to(machine.device)
        with warnings.catch_warnings(action="ignore"): model = DistributedDataParallel(method)
        batch = random_batch(method.views(), 4, machine.device)
        model(batch, Draws(0, 0, device=machine.device), MIDDLE)["loss"].backward()
    finally: dist.destroy_process_group()
    return f"{backend}: gather, reduce, a step under DDP"


def costs(machine) -> str:
    "What a step costs at ViT-S and ViT-B, 224 px, and its share of the rate of matrix products."
    if not machine.fast: raise Skip("224 px take an accelerator; make bench has smaller ones")
    share = lambda cost: 100 * cost.gflop_per_s / 1e3 / machine.rate
    best, names = [], [n for n in method_names() if n != "mae_nnclr"]
    precision = "bf16" if machine.bf16() else "fp32"
    for size, batch in (("small", 128), ("base", 64)):
        print(f"ViT-{size}/16, 224 px, batch {batch}, {precision}\n{HEADER}   share")
        rows = bench(names, EncoderConfig(size, patch_size=16, image_size=224), batch,
                     machine.device, 3, precision,
                     told=lambda c: print(f"{row_text(c)}  {share(c):6.1f} %", flush=True))
        best.append(f"ViT-{size} MAE {rows[0].images_per_s:.0f} images/s, {share(rows[0]):.0f} %")
    return f"{'; '.join(best)} of {machine.rate:.0f} TFLOP/s"


def training(machine) -> str:
    "Three methods train on the generated pictures."
    small = machine.quick or not machine.fast
    encoder, steps, batch = (TINY, 6, 16) if small else (
        EncoderConfig(embed_dim=192, depth=6, num_heads=3, patch_size=8, image_size=64), 300, 256)
    told, data = [], open_dataset("scenes", "train")
    for name in ("mae", "latent_mim", "moca"):
        options = tiny_forms(name)[""] if small else find_method(name).fit_batch(batch)
        recipe = Recipe(name, name, encoder=encoder, options=options, epochs=10_000,
                        batch_size=batch, optimiser=Optimiser(lr=1e-3, warmup_epochs=1))
        run = Run(recipe, 0, data).start()
        stream, begin, losses = stream_of(run, steps), time.monotonic(), []
        for _ in range(steps):
            run.take(stream.__next__)
            if run.step % 25 == 0 or run.step == steps:
                losses += [done.values["loss"] for done in run.read()]
        took, edge = time.monotonic() - begin, max(1, steps // 10)
        first, last = (sum(x) / edge for x in (losses[:edge], losses[-edge:]))
        falls = last < first or small or name != "mae"
        assert all(map(math.isfinite, losses)) and falls, f"{name}: {first:.3f} to {last:.3f}"
        told.append(f"{name} {first:.3f} to {last:.3f}, {steps * batch / took:.0f} images/s, "
                    f"waiting {100 * run.waited / took:.0f} %")
    return "; ".join(told)


PARTS = (speed, parity, bf16, resume, workers, compiled, group, training, costs)


def pictures(quick: bool) -> tempfile.TemporaryDirectory | None:
    "Draw pictures of our own where there are none, or in a hurry, and go where their settings are."
    if not quick and (settings().data / "scenes/objects").is_dir(): return None
    home = tempfile.TemporaryDirectory()
    generate(Path(home.name) / "data/scenes", scale=.05 if quick else 1., progress=False,
             subsets=("objects",))
    (Path(home.name) / "settings.ini").write_text("[paths]\ndata = data\n")
    os.chdir(home.name)
    return home


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="default: an accelerator, if there is one")
    parser.add_argument("--quick", action="store_true", help="fewer forms and pictures, for a test")
    parser.add_argument("--parts", nargs="+", choices=[p.__name__ for p in PARTS])
    given = parser.parse_args()
    os.environ["MIMSSL_DEVICE"] = given.device
    machine, home = Machine(pick_device(given.device), given.quick), pictures(given.quick)
    begin, words = time.monotonic(), []
    for part in PARTS:
        if given.parts and part.__name__ not in given.parts: continue
        start = time.monotonic()
        try:
            if start - begin > LIMIT - 60 and not given.parts: raise Skip("no time is left")
            word, text = "ok", part(machine)
        except Skip as e: word, text = "skipped", str(e)
        except Exception as e:
            word, text = "FAILED", f"{type(e).__name__}: {str(e)[:500]}"
        words.append(word)
        print(f"{word:<8}{part.__name__:<10}{time.monotonic() - start:6.1f} s  {text}", flush=True)
    count = {word: words.count(word) for word in ("ok", "skipped", "FAILED")}
    print(f"{', '.join(f'{n} {word}' for word, n in count.items())}; "
          f"{time.monotonic() - begin:.0f} s")
    if home:
        os.chdir("/")
        home.cleanup()
    return 1 if count["FAILED"] else 0


if __name__ == "__main__": sys.exit(main())
