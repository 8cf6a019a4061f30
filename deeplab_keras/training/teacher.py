"""The teacher of a run: a trained network whose class probabilities the run learns too.

See Hinton et al., arXiv:1503.02531. The teacher gets the augmented images of each training step and
predicts as in inference. It is not part of the trained model, so checkpoints, the optimizer and
exports do not contain it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from deeplab_keras.checkpoints import folder
from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import TrainConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.models.layers import WindowPooling, smallest_size
from deeplab_keras.zoo.loading import checkpoint_folder, is_name, load_model

WEIGHT, TEMPERATURE = 0.5, 2.0  # the defaults


@dataclasses.dataclass(frozen=True)
class TeacherFiles:
    """The files of a teacher, before its network is built.

    Attributes:
        source: The value of the option `teacher`.
        path: The checkpoint folder or `.keras` file.
        hashes: The SHA-256 of the files that determine the teacher's outputs, by name.
        info: The teacher's classes. `None` for a `.keras` file, which has no class names.
    """

    source: str
    path: pathlib.Path
    hashes: dict[str, str]
    info: DatasetInfo | None

    def identity(self) -> dict[str, Any]:
        """Returns what the run's folder records about the teacher, as JSON values."""
        return {"checkpoint": str(self.path), "sha256": self.hashes}

    def check_classes(self, info: DatasetInfo) -> None:
        """Raises `UserError` if the teacher has other classes than the dataset, as far as known."""
        if self.info is None:
            return
        if self.info.num_classes != info.num_classes:
            raise self._other_classes(self.info.num_classes, info)
        if other := self.info.renamed(info):
            first = other[0]
            raise UserError(
                f"`teacher={self.source}`: has other classes than the dataset {info.name!r}: class "
                f"{first} is {self.info.class_names[first]!r} there and "
                f"{info.class_names[first]!r} here; give a teacher with the classes of the dataset "
                "in the same order"
            )

    def _other_classes(self, count: Any, info: DatasetInfo) -> UserError:
        return UserError(
            f"`teacher={self.source}`: has {count} classes, and the dataset {info.name!r} has "
            f"{info.num_classes}; give a teacher with the classes of the dataset"
        )

    def load(
        self, training: TrainConfig, info: DatasetInfo, size: tuple[int, int], channels: int
    ) -> Teacher:
        """Builds the teacher's network and loads its weights.

        Args:
            training: The settings of the run.
            info: The classes of the dataset.
            size: (height, width) of the training crops.
            channels: Number of channels of the student's images.

        Raises:
            UserError: The weights are damaged or not finite, or the network cannot process the
                crops.
        """
        with _named():
            if self.info is None:
                model, step = load_model(self.path), None
                check_values(folder.named_weights(model), self.path, "give another teacher")
            else:
                loaded = folder.load_checkpoint(self.path)
                model, step = loaded.model, loaded.metrics.get("step")
        model.trainable = False
        self._check_images(model, info, size, channels)
        return Teacher(
            model,
            training.distillation_weight or WEIGHT,
            training.distillation_temperature or TEMPERATURE,
            self,
            step,
        )

    def _check_images(
        self, model: keras.Model, info: DatasetInfo, size: tuple[int, int], channels: int
    ) -> None:
        start, crop = f"`teacher={self.source}`: ", f"{size[0]}x{size[1]}"
        given = getattr(model, "input_shape", None)
        if not isinstance(given, tuple) or len(given) != 4:
            raise UserError(
                f"{start}its input is not [batch, height, width, channels] but {given}; give a "
                "segmentation network"
            )
        if given[-1] != channels:
            raise UserError(
                f"{start}its images have {given[-1]} channels, and those of the run {channels}; "
                f"give a teacher with `input_channels={channels}`"
            )
        if given[0] is not None or any(
            side not in (None, length) for side, length in zip(given[1:3], size, strict=True)
        ):
            raise UserError(
                f"{start}its input has the fixed shape {given}, and the training crops are {crop}; "
                "give a teacher for any number of images of this size, such as a checkpoint folder"
            )
        try:
            shape = model.compute_output_shape((1, *size, channels))
        except ValueError as error:
            reason = str(error).splitlines()[0]
            for layer in model.layers:
                if isinstance(layer, WindowPooling):
                    height, width = smallest_size(tuple(layer.pool_size), layer.output_stride)
                    reason = f"its image pooling requires {height}x{width}"
            raise UserError(
                f"{start}cannot process training crops of {crop}: {reason}; give a larger "
                "`train_crop_size` or another teacher"
            ) from error
        if not isinstance(shape, tuple) or shape[:3] != (1, *size) or len(shape) != 4:
            raise UserError(
                f"{start}its output for an image of {crop} has the shape {shape}, which is not "
                f"[1, {size[0]}, {size[1]}, {info.num_classes}]; give a network with one score per "
                "pixel and class"
            )
        if shape[-1] != info.num_classes:
            raise self._other_classes(shape[-1], info)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network that teaches. Keras does not track it as a part of the trained model.

    Attributes:
        model: The network, from images in 0..255 to logits.
        weight: The weight of its class probabilities in the loss.
        temperature: The divisor of the logits, see `losses.distillation`.
        files: Where the network is from.
        step: The training step of its weights, if known.
    """

    model: keras.Model
    weight: float
    temperature: float
    files: TeacherFiles
    step: int | None

    def logits(self, images: Any) -> Any:
        """Returns the teacher's logits, `[batch, height, width, classes]`, in `floatx`."""
        return ops.cast(self.model(images, training=False), keras.config.floatx())

    def __str__(self) -> str:
        step = "" if self.step is None else f" (step {self.step})"
        numbers = f"weight {self.weight:g}, temperature {self.temperature:g}"
        return f"{self.files.source}{step}, {numbers}"


def find_teacher(training: TrainConfig) -> TeacherFiles | None:
    """Returns the files of a run's teacher, or `None` if the run has none.

    Raises:
        UserError: The teacher does not exist, is damaged, or is in the run's own folder.
    """
    if not training.teacher:
        return None
    source, info = training.teacher, None
    with _named():
        if source.endswith(".keras"):
            path = pathlib.Path(source)
            names = [path]
            if not path.is_file():
                raise UserError(f"{path}: no such file; give a file that model.save wrote")
        else:
            path = checkpoint_folder(source)
            names = [path / folder.CONFIG, path / folder.WEIGHTS]
            folder.read_config(path)
            info = folder.read_info(path)
        run, weights = (os.path.realpath(name) for name in (training.train_logdir, names[-1]))
        inside = pathlib.Path(weights).is_relative_to(run)
        if training.train_logdir and inside and not is_name(source):
            raise UserError(
                f"{source}: is in the folder of this run, `train_logdir={training.train_logdir}`; "
                "give the checkpoint of another run"
            )
        try:
            hashes = {name.name: folder.sha256(name) for name in names}
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); give another teacher"
            ) from error
    return TeacherFiles(source, path, hashes, info)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Context in which errors name the option `teacher`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"`teacher`: {error.text}") from error
