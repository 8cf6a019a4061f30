"""The config of a training."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option

ABOVE_0 = (
    "base_learning_rate", "adam_learning_rate", "adam_epsilon", "learning_power", "learning_rate_decay_factor",
    "slow_start_learning_rate", "eval_interval_epochs",
)  # fmt: skip
AT_LEAST_0 = (
    "weight_decay", "decay_steps", "warmup_steps", "slow_start_step", "backbone_learning_rate_multiplier",
    "last_layer_gradient_multiplier", "bias_learning_rate_multiplier", "hard_example_mining_step",
    "auxiliary_loss_weight", "clip_gradient_norm", "early_stopping", "save_interval_steps", "summary_images",
    "recalibrate_batch_norm",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainConfig(Config):
    """How the weights are found."""

    train_logdir: str = option(
        "", "the run's folder (workdir); the same command again goes on from its last checkpoint"
    )
    tf_initial_checkpoint: str | None = option(
        None,
        "where the weights start: a checkpoint or workdir, a converted folder, 'imagenet', or a "
        "file of ImageNet weights",
    )
    initialize_last_layer: bool = option(
        True,
        "False: the last layers start fresh instead of from the initial checkpoint; the "
        "classifiers do anyway where the classes differ",
    )
    last_layers_contain_logits_only: bool = option(
        False, "what the last layers are: the classifiers; False: the whole head"
    )
    training_number_of_steps: int | None = option(
        None, "length of the training in steps; this or `epochs`"
    )
    epochs: float | None = option(
        None, "length of the training in passes over the data; this or `training_number_of_steps`"
    )
    optimizer: str = option("momentum", "optimizer", choices=("momentum", "adam", "adamw", "lion"))
    momentum: float = option(0.9, "momentum")
    adam_learning_rate: float | None = option(
        None,
        "with `optimizer='adam'`: this constant rate, in place of the base rate and the learning "
        "policy",
    )
    adam_epsilon: float = option(1e-8, "adam and adamw: added to the root of the second moment")
    base_learning_rate: float = option(0.01, "learning rate at the start")
    learning_policy: str = option(
        "poly", "learning rate schedule", choices=("poly", "cosine", "step", "constant")
    )
    end_learning_rate: float | None = option(
        None, "poly and cosine: learning rate at the end; default: a hundredth of the base rate"
    )
    learning_power: float = option(0.9, "exponent of the polynomial decay")
    decay_steps: int = option(
        0,
        "poly and cosine: steps until the rate has fallen to its end; 0: all steps after the start",
    )
    learning_rate_decay_factor: float = option(0.1, "step: factor on the rate at each fall")
    learning_rate_decay_step: int = option(2000, "step: steps between two falls")
    warmup_steps: int = option(0, "steps in which the rate climbs linearly from 0")
    slow_start_step: int = option(
        0,
        "steps at the constant `slow_start_learning_rate`, before the learning policy begins; in "
        "place of a warm-up",
    )
    slow_start_learning_rate: float = option(1e-4, "learning rate of these steps")
    backbone_learning_rate_multiplier: float = option(
        1.0, "factor on the rate of the backbone's weights"
    )
    last_layer_gradient_multiplier: float = option(
        1.0, "factor on the rate of the last layers, see last_layers_contain_logits_only"
    )
    bias_learning_rate_multiplier: float = option(
        1.0, "factor on the rate of biases; the official DeepLab's is 2"
    )
    weight_decay: float = option(
        5e-4,
        "L2 factor; coupled (added to the gradient) with momentum and adam, decoupled with adamw "
        "and lion",
    )
    weight_decay_on_all: bool = option(
        True,
        "decay acts on every weight; False: on convolution kernels only, depthwise ones left out",
    )
    loss: str = option(
        "cross_entropy",
        "terms of the loss with their weights, as cross_entropy+0.5*dice; also focal, lovasz",
    )
    label_weights: tuple[float, ...] = option(
        (), "weight of each class in the loss; empty: all equal"
    )
    top_k_percent_pixels: float = option(
        1.0,
        "share of the pixels, from 0 to 1, whose cross-entropy counts: the hardest ones; 1: all",
    )
    hard_example_mining_step: int = option(
        0, "steps in which that share falls from 1 to top_k_percent_pixels"
    )
    auxiliary_loss_weight: float = option(0.4, "weight of the auxiliary head's loss")
    label_smoothing: float = option(
        0.0, "share of the probability that goes evenly to all classes in the loss"
    )
    ema_momentum: float = option(
        0.0, "keeps a running average of the weights with this momentum and evaluates it; 0: none"
    )
    clip_gradient_norm: float = option(
        0.0, "largest norm of the gradient over all weights; a larger one is scaled down; 0: any"
    )
    gradient_accumulation_steps: int = option(
        1,
        "the batch of a step goes through the network in so many parts, one after another, for "
        "less memory; batch norm sees the parts",
    )
    freeze_backbone: bool = option(
        False, "the backbone stays as it starts, its batch statistics too; only the head learns"
    )
    fine_tune_batch_norm: bool = option(
        True, "False keeps the batch statistics of the initial checkpoint"
    )
    recalibrate_batch_norm: int = option(
        0,
        "training batches on which the statistics of batch norm are measured anew before each "
        "evaluation, as 20; 0: the running statistics are used",
    )
    strategy: str = option(
        "auto",
        "auto: all visible GPUs; multi_worker: several machines, named by the variable TF_CONFIG",
        choices=("auto", "none", "mirrored", "multi_worker"),
    )
    worker_timeout: int = option(
        600, "multi_worker: seconds to wait for the other workers at the start"
    )
    precision: str = option(
        "float32",
        "arithmetic of the network; logits and loss stay float32",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: bool = option(False, "compiles the training step with XLA")
    deterministic: bool = option(False, "bit-equal results for equal seeds, somewhat slower")
    eval_interval_epochs: float = option(
        1.0, "passes over the training data between two evaluations"
    )
    early_stopping: int = option(
        0, "ends the training after so many evaluations in a row without a better mIoU; 0: never"
    )
    save_interval_steps: int = option(
        0, "steps between two checkpoints; 0: one at every evaluation"
    )
    keep_checkpoints: int = option(
        2, "how many of these checkpoints are kept, the newest ones; the best one is kept besides"
    )
    summary_images: int = option(4, "validation images drawn for TensorBoard at each evaluation")
    summary_histograms: bool = option(
        False, "shows TensorBoard the distribution of every weight at each evaluation"
    )
    profile_steps: tuple[int, ...] = option(
        (), "first and last step that TensorBoard's profiler records, as 10,20; empty: none"
    )
    html_report: bool = option(
        True, "writes report.html at the end: curves, classes, confusions, best and worst images"
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
            self.training_number_of_steps is None or self.training_number_of_steps >= 0,
            "training_number_of_steps",
            "must be at least 1, or 0 for no limit in steps",
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
            "must be above 0 and at most 1, which stands for all pixels",
        )
        self._require(
            all(weight >= 0 for weight in self.label_weights),
            "label_weights",
            "must be numbers of at least 0, one per class",
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
            "requires `tf_initial_checkpoint`: random weights are not worth keeping",
        )
        self._require(
            not self.recalibrate_batch_norm or self.fine_tune_batch_norm,
            "recalibrate_batch_norm",
            "cannot be combined with `fine_tune_batch_norm=False`, which keeps the statistics of the "
            "initial checkpoint",
        )
        self._require(
            self.adam_learning_rate is None or self.optimizer == "adam",
            "adam_learning_rate",
            f"requires `optimizer='adam'`; the learning rate of {self.optimizer} is `base_learning_rate`",
        )
