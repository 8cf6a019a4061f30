"""The config of a training."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """How the weights are found."""

    train_logdir: str = option("", "the run's folder (workdir); the same command again goes on from its last checkpoint")
    tf_initial_checkpoint: str | None = option(
        None, "where the weights start: a checkpoint or workdir, a converted folder, 'imagenet', or a file of ImageNet weights"
    )
    initialize_last_layer: bool = option(True, "False leaves the classifier layers of the initial checkpoint out; they are left out anyway where the classes differ")
    training_number_of_steps: int | None = option(None, "length of the training in steps; this or --epochs")
    epochs: float | None = option(None, "length of the training in passes over the data; this or --training_number_of_steps")
    optimizer: str = option("momentum", "optimizer", choices=("momentum", "adam", "adamw"))
    momentum: float = option(0.9, "momentum")
    base_learning_rate: float = option(0.01, "learning rate at the start")
    learning_policy: str = option("poly", "learning rate schedule", choices=("poly", "cosine", "constant"))
    end_learning_rate: float | None = option(None, "learning rate at the end; default: a hundredth of the base rate")
    learning_power: float = option(0.9, "exponent of the polynomial decay")
    warmup_steps: int = option(0, "steps in which the rate climbs linearly from 0")
    backbone_learning_rate_multiplier: float = option(1.0, "factor on the rate for the backbone's weights")
    weight_decay: float = option(5e-4, "L2 factor; coupled (added to the gradient) with momentum and adam, decoupled with adamw")
    weight_decay_on_all: bool = option(True, "decay acts on every weight; False: on convolution kernels only, depthwise ones left out")
    loss: str = option("cross_entropy", "terms of the loss with their weights, as cross_entropy+0.5*dice; also focal, lovasz")
    label_weights: tuple[float, ...] = option((), "weight of each class in the loss; empty: all equal")
    auxiliary_loss_weight: float = option(0.4, "weight of the auxiliary head's loss")
    label_smoothing: float = option(0.0, "share of the probability that goes evenly to all classes in the loss")
    ema_momentum: float = option(0.0, "keeps a running average of the weights with this momentum and evaluates it; 0: none")
    fine_tune_batch_norm: bool = option(True, "False keeps the batch statistics of the initial checkpoint")
    strategy: str = option("auto", "auto: all visible GPUs", choices=("auto", "none", "mirrored"))
    precision: str = option("float32", "arithmetic of the network; logits and loss stay float32",
                            choices=("float32", "mixed_bfloat16", "mixed_float16"))
    jit_compile: bool = option(False, "compiles the training step with XLA")
    deterministic: bool = option(False, "bit-equal results for equal seeds, somewhat slower")
    eval_interval_epochs: float = option(1.0, "passes over the training data between two evaluations")
    save_interval_steps: int = option(0, "steps between two checkpoints; 0: one at every evaluation")
    summary_images: int = option(4, "validation images drawn for TensorBoard at each evaluation")

    def validate(self) -> None:
        self._require(self.base_learning_rate > 0, "base_learning_rate", "above 0")
        self._require(self.weight_decay >= 0, "weight_decay", "0 or above")
        self._require(0 <= self.momentum < 1, "momentum", "at least 0 and below 1")
        self._require(0 <= self.ema_momentum < 1, "ema_momentum", "at least 0 and below 1")
        self._require(0 <= self.label_smoothing < 1, "label_smoothing", "at least 0 and below 1")
        self._require(self.training_number_of_steps is None or self.training_number_of_steps >= 0,
                      "training_number_of_steps", "at least 1; 0: not given")
        self._require(self.epochs is None or self.epochs >= 0, "epochs", "above 0; 0: not given")
        self._require(self.eval_interval_epochs > 0, "eval_interval_epochs", "above 0")
        self._require(self.save_interval_steps >= 0, "save_interval_steps", "0 or above")
        self._require(self.end_learning_rate is None or 0 <= self.end_learning_rate <= self.base_learning_rate,
                      "end_learning_rate", f"at least 0 and at most --base_learning_rate={self.base_learning_rate}")
