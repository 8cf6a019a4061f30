r"""Segments your own images and videos: one file, all of a folder, a pattern, or the camera.

Writes NAME_labels.png (one class id per pixel), NAME_color.png and NAME_overlay.png to --output.
Labels and colors have the size of the image. A file that cannot be read is reported and skipped;
the exit status is then 1.

    python scripts/predict.py --checkpoint_dir=runs/demo --input=photographs --output=predictions

    python scripts/predict.py --checkpoint_dir=runs/demo --input='camera/**/*.jpg' \
        --output=predictions --outputs=overlay,probabilities --palette=color_blind
"""

from __future__ import annotations

from deeplab_keras.cli import Command, require_backend
from deeplab_keras.config import EvalConfig, PredictConfig


def main(command: Command) -> int:
    """Predicts; 1 where a file could not be read."""
    config, eval_config = command.config(PredictConfig), command.config(EvalConfig)
    from deeplab_keras.inference.exported import has_own_runtime

    if not has_own_runtime(config.checkpoint_dir) or eval_config.inference == "official":
        require_backend(command)

    from deeplab_keras import prediction

    done = prediction.predict(config, eval_config)
    written = done.total - done.skipped - done.failed
    command.summary.count(
        inputs=done.total, written=written, skipped=done.skipped, failed=done.failed
    )
    command.summary.failures |= done.failures
    command.summary.wrote(done.folder)
    return 1 if done.failed else 0


SECTIONS = (PredictConfig, EvalConfig)
