"""Draws the predictions of a trained network on a dataset, next to the images and labels.

Writes NAME_image.png, NAME_prediction.png, NAME_overlay.png and NAME_panel.png for each image to
--vis_logdir. The default dataset is that of the training run.

    python scripts/vis.py --checkpoint_dir=runs/demo --vis_samples=8
"""

from __future__ import annotations

import dataclasses
import pathlib

from deeplab_keras.cli import Command, require_backend
from deeplab_keras.cli.official import VisFlags
from deeplab_keras.config import Config, DataConfig, EvalConfig, option


@dataclasses.dataclass(frozen=True)
class VisOptions(Config):
    """What to draw, and where to write the images."""

    checkpoint_dir: str = option(
        "", "a workdir (for its best checkpoint), a checkpoint folder, or the name of a model"
    )
    vis_logdir: str = option("", "folder for the images; default: vis in --checkpoint_dir")
    vis_samples: int = option(16, "number of images, evenly spaced over the split; 0: all")
    vis_photographs: bool = option(
        True, "includes the photos; false: leaves them out, for data that must not be published"
    )
    also_save_raw_predictions: bool = option(False, "also writes the class ids, as NAME_labels.png")

    def validate(self) -> None:
        """Requires a checkpoint."""
        self._require_given("checkpoint_dir", "the `train_logdir` of a training run")
        self._require(self.vis_samples >= 0, "vis_samples", "must be at least 0")


def main(command: Command) -> None:
    """Predicts and draws each image."""
    options, eval_config = command.config(VisOptions), command.config(EvalConfig)
    data_config = command.data_config(options.checkpoint_dir)
    require_backend(command)

    from deeplab_keras import inference
    from deeplab_keras.data.registry import open_dataset
    from deeplab_keras.evaluation.classes import check_classes
    from deeplab_keras.io.progress import Progress
    from deeplab_keras.io.writing import check_folder
    from deeplab_keras.visualization import colorize, overlay, panel, save_png
    from deeplab_keras.zoo.loading import open_checkpoint, results_folder

    folder = pathlib.Path(options.vis_logdir or results_folder(options.checkpoint_dir) / "vis")
    if options.vis_logdir:
        check_folder(folder, "vis_logdir")
    source = open_dataset(data_config, data_config.eval_split)
    path = command.checkpoint(options.checkpoint_dir)
    checkpoint = command.official_network(open_checkpoint(path))
    check_classes(options.checkpoint_dir, checkpoint.info, source.info)
    predictor, info = inference.Predictor(checkpoint.model, eval_config), checkpoint.info
    count = min(options.vis_samples or len(source), len(source))
    progress = Progress(count, "drawing")
    for done in range(count):
        index = done * len(source) // count
        image, label = source.load(index)
        ready = inference.as_image(image, predictor.network.channels)
        (prediction,), (confidence,) = predictor.labels_and_confidence(ready[None])
        shown, palette = image if options.vis_photographs else None, eval_config.palette
        drawn = panel(shown, label, prediction, info, confidence=confidence, palette=palette)
        pictures = {"prediction": colorize(prediction, info, palette), "panel": drawn}
        if shown is not None:
            pictures |= {
                "image": shown,
                "overlay": overlay(shown, prediction, info, palette=palette),
            }
        if options.also_save_raw_predictions:
            pictures["labels"] = prediction
        for kind, picture in pictures.items():
            save_png(folder / f"{source.names[index]}_{kind}.png", picture)
        progress.update(done + 1)
    command.summary.count(images=count)
    command.summary.wrote(folder)
    print(f"written: {count} images to {folder}")


SECTIONS = (VisOptions, EvalConfig, DataConfig, VisFlags)
