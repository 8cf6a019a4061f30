"""Training: from four configs to a workdir with a trained model."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from absl import logging

from deeplab_keras.callbacks import Rounds, Run, Steps, stop_on_sigterm
from deeplab_keras.checkpoints.initial import initialize
from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import NORMALIZATIONS, DataConfig, EvalConfig, ModelConfig, TrainConfig, UserError
from deeplab_keras.data import Source, open_dataset, pipeline
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.evaluation import Report, evaluate
from deeplab_keras.inference import Network, Predictor
from deeplab_keras.layers import BatchNormalization
from deeplab_keras.losses import SegmentationLoss, make_loss, parse_terms
from deeplab_keras.metrics import ConfusionMatrix
from deeplab_keras.optimizers import make_optimizer
from deeplab_keras.segmentor import build_segmentor, check_input_size, check_names, with_auxiliary_output
from deeplab_keras.visualization import panel


def train(
    model: ModelConfig,
    data: DataConfig,
    training: TrainConfig,
    evaluation: EvalConfig = EvalConfig(),
    *,
    flags_text: str = "",
) -> Report:
    """Trains a model, or goes on with the training that stands in `training.train_logdir`.

    Args:
        model: the architecture; its number of classes becomes the dataset's.
        data: the dataset and its augmentation.
        training: length, optimizer, strategy, folder.
        evaluation: how validation images are inferred.
        flags_text: the command's flags, kept in the workdir.

    Returns:
        The report of the last evaluation on `data.eval_split`.

    Raises:
        UserError: anything that a user can mend, before the first step wherever it can be known by then.
    """
    _check(data, training)
    seed_everything(data.seed, training.deterministic)
    train_source, eval_source = (open_dataset(data, split) for split in (data.train_split, data.eval_split))
    info = train_source.info
    model = model.replace(num_classes=info.num_classes)
    if training.label_weights and len(training.label_weights) != info.num_classes:
        raise UserError(
            f"--label_weights: {len(training.label_weights)} numbers; {info.name} has {info.num_classes} classes: give as many"
        )
    check_names(model)
    check_input_size(model, *_pair(data.train_crop_size))
    total_steps = training_steps(training, len(train_source), data.train_batch_size)
    configs = {"model": model, "data": data, "train": training, "eval": evaluation}
    with Workdir(training.train_logdir, configs, flags_text) as workdir:
        run, trained = _build(model, data, training, info, workdir, total_steps)
        workdir.check_space(run.model)
        if run.restore():
            logging.info("going on from step %d of %d in %s", run.step, total_steps, workdir.path)
        else:
            if training.tf_initial_checkpoint:
                initialize(
                    run.model, model, training.tf_initial_checkpoint, training.initialize_last_layer,
                    logits_only=training.last_layers_contain_logits_only,
                )
            run.start_averages()
        if run.step < total_steps:
            _fit(run, trained, data, training, evaluation, train_source, eval_source)
        if run.stop_requested:
            raise UserError(f"stopped at step {run.step} of {total_steps} by SIGTERM; the same command goes on from there")
        if run.last_report is None:
            with run.averaged():
                run.last_report = evaluate(
                    run.model, eval_source, evaluation, model_name=model.name, split=data.eval_split
                )
        run.last_report.save(workdir.path / "metrics.json")
        return run.last_report


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and the backend; with `deterministic`, operations give bit-equal results each time."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def training_steps(training: TrainConfig, images: int, batch_size: int) -> int:
    """Length of the training in steps, given in steps or in passes over the images."""
    if training.training_number_of_steps:
        return training.training_number_of_steps
    assert training.epochs
    return max(round(training.epochs * images / batch_size), 1)


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy by its flag; `auto`: every visible GPU, or the one device that there is."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if name == "none" or (name == "auto" and len(devices) == 1):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _check(data: DataConfig, training: TrainConfig) -> None:
    steps, epochs = training.training_number_of_steps, training.epochs
    if steps and epochs:
        raise UserError(
            f"--training_number_of_steps={steps} and --epochs={epochs} are both given, perhaps one in the flagfile: give either "
            "--training_number_of_steps or --epochs, and the other as 0"
        )
    if not steps and not epochs:
        raise UserError("give the length of the training: either --training_number_of_steps or --epochs")
    if training.top_k_percent_pixels < 1 and "cross_entropy" not in parse_terms(training.loss):
        raise UserError(
            f"--top_k_percent_pixels={training.top_k_percent_pixels}: acts on cross_entropy, which --loss={training.loss} has "
            "not; give 1, or another --loss"
        )
    replicas = make_strategy(training.strategy).num_replicas_in_sync
    if data.train_batch_size % replicas:
        raise UserError(
            f"--train_batch_size={data.train_batch_size}: must divide by the number of devices, {replicas}; "
            f"give {max(data.train_batch_size // replicas, 1) * replicas}"
        )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    height, width = values
    return height, width


def _build(
    config: ModelConfig, data: DataConfig, training: TrainConfig, info: DatasetInfo, workdir: Workdir, total_steps: int
) -> tuple[Run, keras.Model]:
    keras.config.set_dtype_policy(training.precision)
    with make_strategy(training.strategy).scope():
        model = build_segmentor(config)
        for layer in model.layers:
            if isinstance(layer, BatchNormalization):
                layer.freeze_statistics = not training.fine_tune_batch_norm
        trained = with_auxiliary_output(model, config.align_corners)
        optimizer = make_optimizer(training, total_steps)
        weights = {"auxiliary_logits": training.auxiliary_loss_weight}
        trained.compile(
            optimizer=optimizer,
            loss={name: _loss(training, info, optimizer) for name in trained.output},
            loss_weights={name: weights.get(name, 1.0) for name in trained.output},
            metrics={"logits": [ConfusionMatrix(info.num_classes, info.ignore_label)]},
            jit_compile=training.jit_compile,
        )
        trained.optimizer.build(trained.trainable_variables)
    run = Run(
        model, config, info, trained.optimizer, workdir, total_steps, data.train_batch_size,
        average_momentum=training.ema_momentum,
    )  # fmt: skip
    return run, trained


def _loss(training: TrainConfig, info: DatasetInfo, optimizer: keras.optimizers.Optimizer) -> SegmentationLoss:
    return make_loss(
        training.loss,
        ignore_label=info.ignore_label,
        class_weights=training.label_weights or None,
        label_smoothing=training.label_smoothing,
        hard_example_fraction=training.top_k_percent_pixels,
        hard_example_mining_step=training.hard_example_mining_step,
        step=lambda: optimizer.iterations,
        sum_over_replicas=sum_over_replicas,
    )


def sum_over_replicas(value: Any) -> Any:
    """The sum of a tensor over all replicas of the step it is in; outside of a distributed step the tensor itself."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _fit(
    run: Run, trained: keras.Model, data: DataConfig, training: TrainConfig, evaluation: EvalConfig,
    train_source: Source, eval_source: Source,
) -> None:
    pad_value = NORMALIZATIONS[run.config.normalization][0]
    batches = pipeline.train_dataset(train_source, data, pad_value, start_step=run.step)
    batches = batches.map(lambda images, labels: (images, {name: labels for name in trained.output}))
    network = Network(run.model)
    predictor = Predictor(network, evaluation)

    def validate() -> Report:
        return evaluate(network, eval_source, evaluation, model_name=run.config.name, split=data.eval_split)

    def pictures() -> list[Any]:
        samples = [eval_source.load(i) for i in range(min(training.summary_images, len(eval_source)))]
        return [panel(image, label, predictor(image), run.info) for image, label in samples]

    steps = Steps(run)
    round_steps = max(round(training.eval_interval_epochs * len(train_source) / data.train_batch_size), 1)
    rounds = Rounds(run, steps, round_steps, training.save_interval_steps, validate, pictures)
    try:
        with stop_on_sigterm(run):
            trained.fit(
                batches, steps_per_epoch=run.total_steps - run.step, shuffle=False, verbose=0, callbacks=[steps, rounds]
            )
    except tf.errors.OpError as error:
        mistake = pipeline.user_error(error, train_source)
        if mistake is None:
            raise
        raise mistake from error
