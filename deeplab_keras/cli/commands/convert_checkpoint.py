r"""Foreign weights into a checkpoint folder of ours, and the way back to SSSegmentation.

Strict: a tensor that is missing, left over or of another shape ends the conversion. Prints which
tensor went where, and the proof: every tensor read back from the model and compared bit for bit,
and for a frozen graph or a .tflite the labels and logits of both on the same pictures.

    python scripts/convert_checkpoint.py --source=sssegmentation \
        --model=deeplabv3_mobilenetv2os8_voc \
        --checkpoint=deeplabv3_mobilenetv2os8_voc.pth --output=converted/voc

    python scripts/convert_checkpoint.py --source=sssegmentation \
        --model=deeplabv3_mobilenetv2os8_voc \
        --num_classes=11 --checkpoint=deeplabv3_mobilenetv2os8_voc.pth --output=converted/start

    python scripts/convert_checkpoint.py --source=torchvision \
        --flagfile=configs/base/torchvision_lraspp_mobilenet_v3_large.flags \
        --checkpoint=lraspp_mobilenet_v3_large-d234d4ea.pth --output=converted/lraspp

    python scripts/convert_checkpoint.py --to=sssegmentation \
        --checkpoint_dir=runs/first --output=first.pth
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, ModelConfig, UserError, option


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """What to convert, from where and to where."""

    source: str = option(
        "",
        "whose weights: sssegmentation (.pth, also OpenMMLab's ImageNet files), official_deeplab "
        "(TF1 checkpoint, "
        "release archive, frozen graph, .tflite), torchvision (.pth) or keras_applications (.h5)",
    )
    to: str = option("", "the way back: sssegmentation", choices=("", "sssegmentation"))
    checkpoint: str = option("", "the foreign file")
    checkpoint_dir: str = option("", "with --to: our checkpoint folder or workdir")
    check: bool = option(
        True,
        "runs a frozen graph or .tflite and the new model on the same pictures, and refuses a "
        "conversion that differs",
    )
    output: str = option("", "the new checkpoint folder; with --to: the new .pth file")
    class_names: tuple[str, ...] = option(
        (), "names of the classes; default: those that the model's dataset has"
    )

    def validate(self) -> None:
        """One direction, with its two ends."""
        self._require(
            bool(self.source) != bool(self.to),
            "source",
            "must be given, or else `to`, and not both",
        )
        needed = "checkpoint_dir" if self.to else "checkpoint"
        self._require_given(needed, "what to convert")
        self._require_given("output", "where the result goes")


def main(command: Command) -> None:
    """Converts, writes and says what became of every tensor."""
    options = command.config(Options)

    from deeplab_keras.checkpoints.folder import check_replaceable, save_checkpoint
    from deeplab_keras.convert.conversion import convert, dataset_info, write_sssegmentation
    from deeplab_keras.zoo import registry as zoo

    if options.to:
        proof = write_sssegmentation(options.checkpoint_dir, options.output, zoo.SSSEGMENTATION)
        print(f"{proof.table()}\n{proof}\nwritten: {options.output}")
        return
    given = command.given(ModelConfig)
    if not given:
        raise UserError(
            "--model is needed: a name from scripts/list_models.py, or the model flags themselves"
        )
    config = command.model_config()
    info = dataset_info(config, options.class_names, options.source)
    check_replaceable(options.output)
    model, proof = convert(
        options.source,
        options.checkpoint,
        config,
        skip_mismatched_classifiers="num_classes" in given,
        check=options.check,
    )
    print(f"{proof.table()}\n{proof}")
    print(f"written: {save_checkpoint(options.output, model, config, info)}")


SECTIONS = (Options, ModelConfig)
