"""Some steps of every recipe of params.yaml in double precision, as one process of one or several.

Rounding in float32 differs from CPU to CPU, and three steps of a fresh model can raise it to some
1e-4 (a pixel that changes its side of the L1 loss is enough). In float64 it stays at 1e-14, far
below what any wrong reduction does.
"""
import argparse, json
import torch, yaml
from safetensors.torch import save_file
from mimssl.data.sources import open_dataset
from mimssl.parts.distributed import rank, world
from mimssl.training.loop import Run, batches
from mimssl.training.recipes import read_recipe


def in_double():
    "Everything that is made from now on is float64, and so is what the losses ask to be float32."
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double


def double(batch: dict) -> dict:
    "The batch with its images in float64."
    floats = lambda x: isinstance(x, torch.Tensor) and x.is_floating_point()
    known = {k: [double(t) for t in x] for k, x in batch.items() if k == "target"}
    return {k: x.double() if floats(x) else x for k, x in batch.items()} | known


def train(recipe, data, steps: int, noise: float = 0.):
    "Values of each step and the final state; start weights are times 1 + `noise` * N(0, 1)."
    run = Run(recipe, 0, data)
    run.method.double()
    run.start()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in run.method.parameters(): p.mul_(1 + noise * torch.randn(p.shape, generator=g))
    stream = map(double, batches(data, run.views, recipe, 0, 0, steps, run.device,
                                 run.items))
    values = [run.advance(stream.__next__) for _ in range(steps)]
    return values, {k: x.contiguous().clone() for k, x in run.method.state_dict().items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--noise", type=float, nargs="*", default=[0.])
    parser.add_argument("--recipes", nargs="*", help="default: all")
    given = parser.parse_args()
    in_double()
    with open("params.yaml") as f: params = yaml.safe_load(f)
    for name in given.recipes or params["recipes"]:
        recipe = params["recipes"][name]
        data = open_dataset(recipe["dataset"], "train")
        for noise in given.noise:
            try: values, state = train(read_recipe(params, name), data, given.steps, noise)
            except Exception as e: values, state = repr(e), {}
            stem = f"{name}-{rank()}-of-{world()}" + "-noisy" * bool(noise)
            save_file(state, f"{stem}.safetensors")
            with open(f"{stem}.json", "w") as f: json.dump(values, f)
            # the other process may be waiting
            if isinstance(values, str) and world() > 1: return


if __name__ == "__main__": main()
