"""Segments images of your own: one file, all of a folder, or a pattern.

Writes NAME_labels.png (a class id a pixel), NAME_colour.png and NAME_overlay.png, as large as the
image, to --output. A file that can't be read is named and left out; the exit status is 1 then.

    python scripts/predict.py --checkpoint_dir=runs/demo --input=photographs --output=predictions

    python scripts/predict.py --checkpoint_dir=runs/demo --input='camera/*.jpg' --output=predictions
"""

from __future__ import annotations

import dataclasses
import glob
import pathlib

from deeplab_keras.config import Config, EvalConfig, UserError, option
from deeplab_keras.flags import Command, run

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """What to segment, and where the pictures go."""

    checkpoint_dir: str = option("", "a workdir (its best checkpoint) or a checkpoint folder")
    input: str = option("", "an image, a folder of images, or a pattern like 'photographs/*.jpg'")
    output: str = option("", "folder for the pictures")

    def validate(self) -> None:
        """All three are needed."""
        self._require(bool(self.checkpoint_dir), "checkpoint_dir", "is needed: the --train_logdir of a training")
        self._require(bool(self.input), "input", "is needed: an image, a folder or a pattern")
        self._require(bool(self.output), "output", "is needed: a folder for the pictures")


def find_images(pattern: str) -> dict[str, pathlib.Path]:
    """Name -> file. The name is the file's without its suffix, or with it where two differ in the suffix alone."""
    path = pathlib.Path(pattern)
    files = [path] if path.is_file() else path.iterdir() if path.is_dir() else map(pathlib.Path, glob.glob(pattern))
    images = [file for file in sorted(files) if file.suffix.lower() in SUFFIXES or file == path]
    if not images:
        raise UserError(f"--input={pattern}: no image there; known are {', '.join(SUFFIXES)}")
    stems = [image.stem for image in images]
    return {image.stem if stems.count(image.stem) == 1 else image.name: image for image in images}


def main(command: Command) -> int:
    """Predicts every image; 1 where one of them could not be read."""
    options, eval_config = command.config(Options), command.config(EvalConfig)
    images, folder = find_images(options.input), pathlib.Path(options.output)

    from deeplab_keras import inference, visualization
    from deeplab_keras.checkpoints.folder import load_checkpoint
    from deeplab_keras.progress import Progress

    checkpoint = load_checkpoint(options.checkpoint_dir)
    predictor, info = inference.Predictor(checkpoint.model, eval_config), checkpoint.info
    progress, failed = Progress(len(images), "predicting"), 0
    for done, (name, path) in enumerate(images.items(), start=1):
        try:
            image = inference.open_image(path)
            labels = predictor(image)
        except UserError as error:
            progress.write(f"error: {error}")
            failed += 1
        else:
            visualization.save_png(folder / f"{name}_labels.png", labels)
            visualization.save_png(folder / f"{name}_colour.png", visualization.colorize(labels, info))
            visualization.save_png(folder / f"{name}_overlay.png", visualization.overlay(image, labels, info))
        progress.update(done)
    print(f"written: {len(images) - failed} of {len(images)} images to {folder}" + f"; {failed} failed" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    run(__doc__, main, Options, EvalConfig)
