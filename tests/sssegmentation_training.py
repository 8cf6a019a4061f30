"""Trains FCN on MobileNetV2 at output stride 8 with SSSegmentation's own code, on a CPU.

For comparing a network that the reference trained with one that we trained. The dataset,
transforms, network, losses, optimizer and schedule are the reference's, with the numbers of its
VOC recipe scaled to smaller images. Its training loop cannot be called, because it requires CUDA;
the loop here has the same steps. An interrupted run continues, bit for bit, from its last
checkpoint.

    python tests/sssegmentation_training.py --data=datasets/voc_animals --start=start.pth \
        --output=runs/reference_0 --seed=0

Requires the packages of sssegmentation_input.py.
"""

from __future__ import annotations

import argparse
import csv
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sssegmentation_input import PIPELINE, named_dataset
from sssegmentation_reference import build

RATE, BATCH = 0.01, 16
STATE = "state.pth"


def voc_dataset(root: pathlib.Path, split: str, size: int) -> Any:
    """Returns the reference's dataset of a split of VOC, for crops of `size` by `size`."""
    changes: dict[str, dict[str, Any]] = {
        "Resize": {"output_size": (4 * size, size)},
        "RandomCrop": {"crop_size": (size, size)},
        "Padding": {"output_size": (size, size)},
    }
    pipeline = [(name, {**options, **changes.get(name, {})}) for name, options in PIPELINE]
    names = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
    return named_dataset(
        names, root / "JPEGImages", root / "SegmentationClass", 21, pipeline=pipeline
    )


def batches(dataset: Any, seed: int) -> Iterator[list[int]]:
    """Yields the pairs of each step as the reference's data loader chooses them, epoch by epoch."""
    sampler = torch.utils.data.DistributedSampler(
        dataset, num_replicas=1, rank=0, shuffle=True, seed=seed
    )
    epoch = 1
    while True:
        sampler.set_epoch(epoch)
        yield from torch.utils.data.BatchSampler(sampler, BATCH, drop_last=True)
        epoch += 1


def save(folder: pathlib.Path, module: Any, scheduler: Any, rows: list[list[Any]]) -> None:
    """Writes a checkpoint, in one piece, and the table of all steps."""
    _, keys, *rest = np.random.get_state()
    saved = {
        **scheduler.state(),
        "model": module.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": [keys.tolist(), *rest],
        "rows": rows,
    }
    torch.save(saved, folder / "state.tmp")
    os.replace(folder / "state.tmp", folder / STATE)
    with (folder / "training.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["step", "loss", "learning_rate", "seconds"], *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the VOC layout")
    parser.add_argument("--split", default="trainaug", help="split to train on")
    parser.add_argument("--start", type=pathlib.Path, required=True, help=".pth with the backbone")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--save_interval_steps", type=int, default=50)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    module = build("fcn_mobilenetv2os8", 21, dropout=0.1)
    from ssseg.modules import BuildOptimizer, BuildScheduler, SSSegInputStructure

    weights = torch.load(options.start, weights_only=True)["model"]
    module.backbone_net.load_state_dict(
        {
            name.removeprefix("backbone_net."): value
            for name, value in weights.items()
            if name.startswith("backbone_net.")
        }
    )
    optimizer_config = {
        "type": "SGD", "lr": RATE, "momentum": 0.9, "weight_decay": 5e-4, "params_rules": {},
    }  # fmt: skip
    optimizer = BuildOptimizer(module, optimizer_config)
    scheduler = BuildScheduler(
        optimizer=optimizer,
        scheduler_cfg={
            "type": "PolyScheduler", "max_epochs": 1, "power": 0.9, "lr": RATE, "params_rules": {},
            "iters_per_epoch": options.steps, "optimizer": optimizer_config,
        },
    )  # fmt: skip
    dataset = voc_dataset(options.data, options.split, options.crop)
    options.output.mkdir(parents=True, exist_ok=True)
    state = options.output / STATE
    rows: list[list[Any]] = []
    if state.exists():
        saved = torch.load(state, weights_only=True)
        module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.setstate(saved)
        torch.set_rng_state(saved["torch"])
        keys, *rest = saved["numpy"]
        np.random.set_state(("MT19937", np.array(keys, np.uint32), *rest))
        rows = saved["rows"]
    module.train()
    order = batches(dataset, options.seed)
    for _ in range(scheduler.cur_iter):
        next(order)
    print(f"{len(dataset)} images, from step {scheduler.cur_iter}", flush=True)
    while scheduler.cur_iter < options.steps:
        began = time.time()
        samples = torch.utils.data.default_collate([dataset[index] for index in next(order)])
        rate = scheduler.updatelr()
        inputs = SSSegInputStructure(
            mode="TRAIN",
            images=samples["image"].float(),
            seg_targets=samples["seg_target"].long(),
        )
        optimizer.zero_grad()
        loss, losses = module(inputs).getsetvariables().values()
        loss.backward()
        scheduler.step()
        rows.append([scheduler.cur_iter, losses["loss_total"], rate, time.time() - began])
        if scheduler.cur_iter % 10 == 0:
            recent = np.mean([row[1] for row in rows[-10:]])
            print(f"step {scheduler.cur_iter}  loss {recent:.3f}  {rows[-1][3]:.2f} s", flush=True)
        if (
            scheduler.cur_iter % options.save_interval_steps == 0
            or scheduler.cur_iter == options.steps
        ):
            save(options.output, module, scheduler, rows)
    torch.save({"model": module.state_dict()}, options.output / "model.pth")


if __name__ == "__main__":
    main()
