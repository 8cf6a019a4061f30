"""Writes a trained checkpoint as a model that is part of the package.

    python -m benchmarks.bundled_model runs/demo deeplab_keras/zoo/bundled/synthetic_demo

The weights keep `BITS` significant bits, which makes the compressed file smaller. The scores in
metrics.json are those of these weights on the built-in validation scenes. Prints the share of
pixels with the same label as with the original weights.
"""

from __future__ import annotations

import hashlib
import pathlib
import sys
from typing import Any

import numpy as np

import deeplab_keras as dk
from deeplab_keras.checkpoints import folder
from deeplab_keras.zoo.loading import open_checkpoint

BITS = 11  # as in float16, but with the range of float32


def rounded(values: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Rounds float32 values to a number of significant bits."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits).astype(np.float32)


def main(source: str, target: str) -> None:
    """Writes the folder `target`, whose name becomes that of the model."""
    path, checkpoint = pathlib.Path(target), open_checkpoint(source)
    model, config = checkpoint.model, checkpoint.config.replace(name=pathlib.Path(target).name)
    scenes = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val")
    images = [scenes.load(index)[0] for index in range(len(scenes))]
    before = dk.Predictor(model)(images)
    weights = {name: rounded(value) for name, value in folder.named_weights(model).items()}
    folder.assign_weights(model, weights, source)
    after = dk.Predictor(model)(images)
    same = np.mean(np.stack(before) == np.stack(after))
    report = dk.evaluate(model, scenes, model_name=config.name, split="val", progress=False)
    folder.save_checkpoint(path, model, config, checkpoint.info, metrics=report.to_dict())
    _compress(path)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: {size:,} bytes, mIoU {report.miou:.4f}, same labels {same:.6f}")


def _compress(path: pathlib.Path) -> None:
    """Compresses the weights file of a checkpoint, and updates its hash."""
    file, hashes = path / folder.WEIGHTS, path / folder.HASHES
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    weights: dict[str, Any] = {**folder.read_weights(path)}
    with file.open("wb") as opened:
        np.savez_compressed(opened, **weights)
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    hashes.write_text(hashes.read_text().replace(before, after))


if __name__ == "__main__":
    main(*sys.argv[1:])
