"""The configuration of a training run."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option

MOST_STEPS = 10**9
# Larger temperatures lose the digits of float32, because the loss is multiplied by the square.
LARGEST_TEMPERATURE = 100
ABOVE_0 = (
    "base_learning_rate",
    "adam_learning_rate",
    "adam_epsilon",
    "learning_power",
    "learning_rate_decay_factor",
    "slow_start_learning_rate",
    "eval_interval_epochs",
)
AT_LEAST_0 = (
    "weight_decay",
    "decay_steps",
    "warmup_steps",
    "slow_start_step",
    "backbone_learning_rate_multiplier",
    "last_layer_gradient_multiplier",
    "bias_learning_rate_multiplier",
    "hard_example_mining_step",
    "auxiliary_loss_weight",
    "clip_gradient_norm",
    "early_stopping",
    "save_interval_steps",
    "summary_images",
    "recalibrate_batch_norm",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """How to train: optimizer, schedule, loss, checkpoints and devices.

    Example:
        >>> training = dk.TrainConfig(optimizer="adamw", base_learning_rate=1e-3, epochs=20)
        >>> training.replace(epochs=40).epochs
        40
        >>> dk.TrainConfig(momentum=1.5)
        Traceback (most recent call last):
            ...
        deeplab_keras.config.errors.OptionError: momentum must be at least 0 and below 1. ...
    """

    train_logdir: str = option(
        "", "folder of the run (workdir); run the same command again to resume an interrupted run"
    )
    tf_initial_checkpoint: str | None = option(
        None,
        "initial weights: a model of the zoo, an ImageNet backbone such as openmmlab_mobilenet_v2 "
        "(`list_models.py` lists both), 'imagenet' (Keras' own), a checkpoint, a workdir, or a "
        "file",
    )
    initialize_last_layer: bool = option(
        True,
        "False: initializes the last layers randomly instead of from the initial checkpoint; "
        "classifiers with a different number of classes are always initialized randomly",
    )
    last_layers_contain_logits_only: bool = option(
        False, "True: the last layers are the classifiers; False: they are the whole head"
    )
    training_number_of_steps: int | None = option(
        None,
        "number of training steps; give this or `epochs`, and set the other to 0 if a flagfile "
        "has it",
    )
    epochs: float | None = option(
        None,
        "number of passes over the training data; give this or `training_number_of_steps`, and set "
        "the other to 0 if a flagfile has it",
    )
    optimizer: str = option("momentum", "optimizer", choices=("momentum", "adam", "adamw", "lion"))
    momentum: float = option(0.9, "momentum of SGD (`optimizer='momentum'`)")
    adam_learning_rate: float | None = option(
        None,
        "with `optimizer='adam'`: a constant learning rate, instead of the base rate and the "
        "learning policy",
    )
    adam_epsilon: float = option(
        1e-8, "adam and adamw: constant added to the square root of the second moment"
    )
    base_learning_rate: float = option(0.01, "initial learning rate")
    learning_policy: str = option(
        "poly", "learning rate schedule", choices=("poly", "cosine", "step", "constant")
    )
    end_learning_rate: float | None = option(
        None, "poly and cosine: final learning rate; default: 1/100 of the base rate"
    )
    learning_power: float = option(0.9, "exponent of the polynomial decay")
    decay_steps: int = option(
        0,
        "poly and cosine: number of steps until the rate reaches its final value; 0: all steps "
        "after the warm-up or slow start",
    )
    learning_rate_decay_factor: float = option(
        0.1, "step: factor by which the learning rate changes at each decay"
    )
    learning_rate_decay_step: int = option(2000, "step: number of steps between two decays")
    warmup_steps: int = option(
        0, "number of steps over which the learning rate increases linearly from 0"
    )
    slow_start_step: int = option(
        0,
        "number of steps with the constant `slow_start_learning_rate` before the learning policy "
        "begins; cannot be combined with a warm-up",
    )
    slow_start_learning_rate: float = option(1e-4, "learning rate of the slow-start steps")
    backbone_learning_rate_multiplier: float = option(
        1.0, "factor on the learning rate of the backbone's weights"
    )
    last_layer_gradient_multiplier: float = option(
        1.0,
        "factor on the learning rate of the last layers; see `last_layers_contain_logits_only`",
    )
    bias_learning_rate_multiplier: float = option(
        1.0, "factor on the learning rate of biases; the official DeepLab uses 2"
    )
    weight_decay: float = option(
        5e-4,
        "L2 factor: coupled (added to the gradient) with momentum and adam, decoupled with adamw "
        "and lion",
    )
    weight_decay_on_all: bool = option(
        True,
        "True: decays every weight; False: decays convolution kernels except depthwise ones",
    )
    loss: str = option(
        "cross_entropy",
        "terms of the loss with their weights, such as cross_entropy+0.5*dice; terms: "
        "cross_entropy, dice, focal, lovasz",
    )
    label_weights: tuple[float, ...] = option(
        (), "weight of each class in the loss; empty: equal weights"
    )
    top_k_percent_pixels: float = option(
        1.0,
        "fraction of the pixels, from 0 to 1, that the cross-entropy includes: those with the "
        "largest loss",
    )
    hard_example_mining_step: int = option(
        0, "number of steps over which that fraction decreases from 1 to `top_k_percent_pixels`"
    )
    auxiliary_loss_weight: float = option(0.4, "weight of the auxiliary head's loss")
    label_smoothing: float = option(
        0.0, "fraction of the target probability that is spread evenly over all classes"
    )
    teacher: str | None = option(
        None,
        "trained network whose class probabilities are learned in addition to the labels: a "
        "checkpoint, a workdir, a model of the zoo or a .keras file, with the same classes and any "
        "architecture",
    )
    distillation_weight: float | None = option(
        None,
        "weight of the teacher's probabilities in the loss, above 0 and at most 1; the labels have "
        "the rest; default: 0.5",
    )
    distillation_temperature: float | None = option(
        None,
        "number of at least 1 that divides the logits of both networks before they are compared; "
        "larger values emphasize the classes that the teacher considers unlikely; default: 2",
    )
    ema_momentum: float = option(
        0.0,
        "momentum of an exponential moving average of the weights, which is then evaluated; "
        "0: no average",
    )
    clip_gradient_norm: float = option(
        0.0, "maximum global norm of the gradient; larger gradients are scaled down; 0: no limit"
    )
    gradient_accumulation_steps: int = option(
        1,
        "number of parts into which a batch is split to save memory; their gradients are added, "
        "and batch norm sees one part at a time",
    )
    freeze_backbone: bool = option(
        False, "trains only the head; the backbone keeps its weights and batch statistics"
    )
    fine_tune_batch_norm: bool = option(
        True, "False: keeps the batch statistics of the initial checkpoint"
    )
    recalibrate_batch_norm: int = option(
        0,
        "number of training batches, such as 20, on which batch statistics are computed before "
        "each evaluation; 0: evaluates with the running statistics",
    )
    strategy: str = option(
        "auto",
        "auto: all visible GPUs; multi_worker: several machines, listed in the environment "
        "variable TF_CONFIG",
        choices=("auto", "none", "mirrored", "multi_worker"),
    )
    worker_timeout: int = option(
        600, "multi_worker: seconds to wait for the other workers at startup"
    )
    precision: str = option(
        "float32",
        "dtype policy of the network; logits and loss are always float32",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: bool = option(False, "compiles the training step with XLA; JAX always does")
    deterministic: bool = option(
        False, "makes results bit-identical for equal seeds; somewhat slower"
    )
    eval_interval_epochs: float = option(
        1.0, "number of passes over the training data between two evaluations"
    )
    early_stopping: int = option(
        0,
        "stops after this number of consecutive evaluations without a better mIoU; 0: never",
    )
    save_interval_steps: int = option(
        0, "number of steps between two checkpoints; 0: one at each evaluation"
    )
    keep_checkpoints: int = option(
        2, "number of latest checkpoints to keep, in addition to the best one"
    )
    summary_images: int = option(
        4, "number of validation images that TensorBoard shows for each evaluation"
    )
    summary_histograms: bool = option(
        False, "writes histograms of all weights to TensorBoard at each evaluation"
    )
    profile_steps: tuple[int, ...] = option(
        (), "first and last step for TensorBoard's profiler, such as 10,20; empty: no profile"
    )
    html_report: bool = option(
        True,
        "writes report.html at the end: curves, per-class results, confusions, best and worst "
        "images; and model_card.md: what was trained, how, and how good it is",
    )

    def validate(self) -> None:
        for name in ABOVE_0:
            self._require(
                getattr(self, name) is None or getattr(self, name) > 0, name, "must be above 0"
            )
        for name in AT_LEAST_0:
            self._require(getattr(self, name) >= 0, name, "must be at least 0")
        for name in ("momentum", "ema_momentum", "label_smoothing"):
            self._require(0 <= getattr(self, name) < 1, name, "must be at least 0 and below 1")
        self._require(
            0 <= (self.training_number_of_steps or 0) <= MOST_STEPS,
            "training_number_of_steps",
            f"must be between 1 and {MOST_STEPS}, or 0 for no limit in steps",
        )
        self._require(
            self.epochs is None or self.epochs >= 0,
            "epochs",
            "must be above 0, or 0 for no limit in epochs",
        )
        for name in (
            "learning_rate_decay_step",
            "gradient_accumulation_steps",
            "keep_checkpoints",
            "worker_timeout",
        ):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        self._require(
            not self.profile_steps
            or len(self.profile_steps) == 2
            and 1 <= self.profile_steps[0] <= self.profile_steps[1],
            "profile_steps",
            "must be empty or two steps of at least 1, the first and the last",
        )
        self._require(
            0 < self.top_k_percent_pixels <= 1,
            "top_k_percent_pixels",
            "must be above 0 and at most 1 (all pixels)",
        )
        weights = self.label_weights
        self._require(
            all(weight >= 0 for weight in weights) and (not weights or any(weights)),
            "label_weights",
            "must be numbers of at least 0, one per class, and not all 0",
        )
        self._require(
            self.end_learning_rate is None
            or 0 <= self.end_learning_rate <= self.base_learning_rate,
            "end_learning_rate",
            f"must be at least 0 and at most `base_learning_rate={self.base_learning_rate}`",
        )
        self._require(
            not (self.warmup_steps and self.slow_start_step),
            "slow_start_step",
            f"cannot be combined with `warmup_steps={self.warmup_steps}`",
        )
        self._require(
            not self.freeze_backbone or bool(self.tf_initial_checkpoint),
            "freeze_backbone",
            "requires `tf_initial_checkpoint`; without it, the backbone has random weights",
        )
        self._require(
            not self.recalibrate_batch_norm or self.fine_tune_batch_norm,
            "recalibrate_batch_norm",
            "cannot be combined with `fine_tune_batch_norm=False`, which keeps the statistics of "
            "the initial checkpoint",
        )
        for name in ("distillation_weight", "distillation_temperature"):
            self._require(
                getattr(self, name) is None or bool(self.teacher),
                name,
                "requires `teacher`, the network to imitate",
            )
        self._require(
            self.distillation_weight is None or 0 < self.distillation_weight <= 1,
            "distillation_weight",
            "must be above 0 and at most 1",
        )
        self._require(
            self.distillation_temperature is None
            or 1 <= self.distillation_temperature <= LARGEST_TEMPERATURE,
            "distillation_temperature",
            f"must be at least 1 and at most {LARGEST_TEMPERATURE}",
        )
        self._require(
            self.adam_learning_rate is None or self.optimizer == "adam",
            "adam_learning_rate",
            f"requires `optimizer='adam'`; the learning rate of {self.optimizer} is "
            "`base_learning_rate`",
        )
