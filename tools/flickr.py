"""CFM-ViT on Flickr8k with and without reconstruction, and what it retrieves along the way.

    MIMSSL_DATA=<folder that holds flickr8k_128 and coco_mini> python tools/flickr.py

The recipe `cfm_vit` of conf/profile/laptop.yaml, one thread, both variants in turns. Killed, the
same command continues. Records go to outputs/bench/flickr8k.jsonl: recall on the 1,000 test images
at each reading, and in the end how well regions of COCO are named.
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path

from mimssl.data.files import read_yaml
from mimssl.data.records import append_records, read_records
from mimssl.data.settings import settings
from mimssl.data.sources import open_dataset
from mimssl.data.study import compose
from mimssl.evaluation.suite import evaluate
from mimssl.training.checkpoints import save_state
from mimssl.training.loop import Run, build_run, go, identify, prepare_folders, train
from mimssl.training.recipes import Recipe, read_recipe, resolve

VARIANTS = {"cfm_vit": {}, "contrastive": {"options.rec_weight": 0.}}


def variant(name: str, place: Path, epochs: int) -> Recipe:
    "A variant of the laptop's recipe, named after itself."
    params = read_yaml(compose("laptop", place / "params.yaml"))
    changes = VARIANTS[name] | {"epochs": epochs, "optimiser.warmup_epochs": epochs / 25}
    return resolve(replace(read_recipe(params, "cfm_vit", changes), name=name))


def prepared(recipe: Recipe, seed: int, place: Path) -> tuple[Run, Path, str]:
    "The run at the step of its checkpoint, the file of its checkpoint, and its fingerprint."
    _, key = identify(recipe, seed)
    folder, out = settings().local / "checkpoints" / key, place / f"{recipe.name}-s{seed}"
    run = build_run(recipe, seed, open_dataset(recipe.dataset, recipe.split), out,
                    folder / "rolling.pt")
    prepare_folders(run, folder, out)
    return run, folder / "rolling.pt", key


def reading(run: Run, key: str, spent: float, suite: str, dataset: str, splits: tuple,
            options: dict | None = None) -> list[dict]:
    "Records of the model as it is now; their protocol says how long it has learned."
    so_far = dict(epoch=run.step / run.per_epoch, pairs=run.step * run.recipe.batch_size,
                  cpu_seconds=round(spent))
    was = run.method.training
    found = evaluate(run.method.image_text().eval(), suite, dataset,
                     f"{run.recipe.name}-s{run.seed}", "cfm_vit", run.seed, key, splits=splits,
                     options=options, workers=0, progress=False)
    run.method.train(was)
    return [record | dict(protocol=record["protocol"] | so_far) for record in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--readings", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=settings().outputs / "bench/flickr8k.jsonl")
    args = parser.parse_args()
    place = settings().local / "flickr"
    place.mkdir(parents=True, exist_ok=True)
    runs = {name: prepared(variant(name, place, args.epochs), args.seed, place)
            for name in VARIANTS}
    known = read_records(args.out) if args.out.is_file() else []
    done = {(r["recipe"], r["protocol"]["epoch"]): r["protocol"]["cpu_seconds"] for r in known}
    for i in range(args.readings + 1):
        for name, (run, rolling, key) in runs.items():
            stop = round(run.total * i / args.readings)
            if (key, stop / run.per_epoch) in done: continue
            begin = time.process_time()
            if run.step < stop:
                go(run, stop, rolling)
                save_state(rolling, run.state())
            spent = max([s for (k, _), s in done.items() if k == key], default=0)
            spent += time.process_time() - begin
            found = reading(run, key, spent, "retrieval", "flickr8k_128", ("train", "test"))
            if i == args.readings:
                for positions in (True, False):
                    found += reading(run, key, spent, "region_recognition", "coco_mini",
                                     ("train", "val"),
                                     {"region_recognition": {"positions": positions}})
            append_records(args.out, found)
            done[key, stop / run.per_epoch] = round(spent)
            recall = {r["metric"]: round(r["value"], 2) for r in found if "_r" in r["metric"]}
            print(f"{name}, epoch {stop / run.per_epoch:g}, {spent:.0f} s of one core: {recall}",
                  flush=True)
    for name, (run, _, _) in runs.items():
        train(run.recipe, args.seed, place / f"{name}-s{args.seed}")


if __name__ == "__main__": main()
