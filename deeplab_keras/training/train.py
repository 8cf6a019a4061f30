"""Trains a model from four configs and writes its checkpoints to a workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import (
    NORMALIZATIONS,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptionError,
    TrainConfig,
    UserError,
    require_instance,
)
from deeplab_keras.config.train import MOST_STEPS
from deeplab_keras.convert.initial import initialize
from deeplab_keras.data import pipeline, service
from deeplab_keras.data.datasets.folder_parts import require_classes_in_parts
from deeplab_keras.data.files.pairs import require_labeled
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.data.source import Source
from deeplab_keras.evaluation.metrics import MeanIoU
from deeplab_keras.evaluation.report import Report
from deeplab_keras.models.layer_groups import layers_in_group
from deeplab_keras.models.layers import BatchNormalization, sum_over_replicas
from deeplab_keras.models.segmentor import (
    build_segmentor,
    check_input_size,
)
from deeplab_keras.training import statistics, workers
from deeplab_keras.training.cluster import Cluster
from deeplab_keras.training.divergence import Batch
from deeplab_keras.training.engine import Engine, find_engine
from deeplab_keras.training.losses import SegmentationLoss, make_loss, parse_terms
from deeplab_keras.training.optimizers import BACKBONE, make_optimizer
from deeplab_keras.training.process import preserve_settings
from deeplab_keras.training.rounds import Rounds
from deeplab_keras.training.run import Run, stop_on_sigterm
from deeplab_keras.training.step import TrainedModel
from deeplab_keras.training.steps import Steps
from deeplab_keras.training.teacher import TeacherFiles, find_teacher
from deeplab_keras.training.validation import Validation
from deeplab_keras.zoo.loading import initial_weights

logger = logging.getLogger(__name__)

MULTI_WORKER = "multi_worker"
# Options that may differ between workers: paths, and options that only the chief uses.
DIFFER_BY_WORKER = {
    "train_logdir", "tf_initial_checkpoint", "teacher", "dataset_dir", "cache", "cache_dir",
    "data_service", "summary_images", "summary_histograms", "profile_steps", "html_report",
    "worker_timeout",
}  # fmt: skip


def train(
    model: ModelConfig,
    data: DataConfig,
    training: TrainConfig,
    evaluation: EvalConfig = EvalConfig(),
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    flags_text: str = "",
) -> Report | None:
    """Trains a model, or resumes the run in `training.train_logdir`.

    The dtype policy, the seeds and TensorFlow's determinism are restored afterwards.

    Args:
        model: The architecture. The dataset's number of classes replaces the one in this config.
        data: The dataset and its augmentation.
        training: The length, optimizer, distribution strategy and workdir of the run.
        evaluation: How predictions for validation images are computed.
        callbacks: Keras callbacks, called after the run's own callbacks. A run is one epoch, whose
            steps are counted from the step at which the run resumes. Not supported with several
            workers.
        flags_text: The flags of the command, which are saved in the workdir.

    Returns:
        The report of the last evaluation on `data.eval_split`, or `None` if SIGTERM ended the run.
        Such a run is saved, and the same call resumes it. With several workers, only the chief gets
        the report.

    Raises:
        UserError: If a config or the dataset is invalid, if the run's folder belongs to a different
            run, or if the run diverges. Checks run before the first step where possible.

    Example:
        >>> model = dk.ModelConfig(backbone="mobilenet_v3_small", head="lraspp")
        >>> data = dk.DataConfig(
        ...     dataset="synthetic", eval_samples=2, train_batch_size=2, train_crop_size=(33, 33)
        ... )
        >>> training = dk.TrainConfig(
        ...     train_logdir="runs/first",
        ...     training_number_of_steps=1,
        ...     summary_images=0,
        ...     html_report=False,
        ... )
        >>> class Losses(keras.callbacks.Callback):
        ...     values = []
        ...     def on_train_batch_end(self, batch, logs=None):
        ...         self.values.append(float(logs["loss"]))
        >>> report = dk.train(model, data, training, callbacks=[Losses()])
        >>> report.images, len(Losses.values)
        (2, 1)
    """
    require_instance(model, ModelConfig, "model")
    require_instance(data, DataConfig, "data")
    require_instance(training, TrainConfig, "training")
    require_instance(evaluation, EvalConfig, "evaluation")
    if isinstance(callbacks, keras.callbacks.Callback) or not all(
        isinstance(callback, keras.callbacks.Callback) for callback in callbacks
    ):
        raise UserError("`callbacks` must be a list of keras.callbacks.Callback objects")
    if callbacks and training.strategy == MULTI_WORKER:
        raise UserError(
            "`callbacks` cannot be combined with `strategy='multi_worker'`, which does not use "
            "Keras' fit; leave them out"
        )
    with preserve_settings():
        return _train(_prepare(model, data, training, evaluation), flags_text, callbacks)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a run trains, on what and with what, all checked before anything is written.

    Attributes:
        model: The architecture, with the dataset's number of classes.
        data: The dataset and its augmentation.
        training: The options of the run.
        evaluation: How predictions for validation images are computed.
        train_source: The training images.
        eval_source: The validation images.
        teacher: The files of the teacher.
        engine: What the run needs from Keras' backend.
        strategy: The distribution strategy.
        cluster: The workers, if there are several.
        total_steps: Length of the run in steps.
    """

    model: ModelConfig
    data: DataConfig
    training: TrainConfig
    evaluation: EvalConfig
    train_source: Source
    eval_source: Source
    teacher: TeacherFiles | None
    engine: Engine
    strategy: Any
    cluster: Cluster | None
    total_steps: int

    @property
    def info(self) -> DatasetInfo:
        """The dataset's classes."""
        return self.train_source.info

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.cluster is None or self.cluster.is_chief


def _prepare(
    model: ModelConfig, data: DataConfig, training: TrainConfig, evaluation: EvalConfig
) -> _Plan:
    """Checks the configs against each other and the dataset, and joins the other workers."""
    engine = find_engine()
    _check(training)
    engine.check(training)
    teacher = find_teacher(training)
    cluster = (
        _join_cluster(teacher, model, data, training, evaluation)
        if training.strategy == MULTI_WORKER
        else None
    )
    strategy = (
        engine.make_strategy(training.strategy)
        if cluster is None
        else workers.make_strategy(cluster)
    )
    _check_batch(data, training, strategy.num_replicas_in_sync)
    seed_everything(data.seed, training.deterministic)
    train_source, eval_source = (
        open_dataset(data, split) for split in (data.train_split, data.eval_split)
    )
    for source, split in ((train_source, data.train_split), (eval_source, data.eval_split)):
        require_labeled(source, data, split)
    require_classes_in_parts(train_source, eval_source, data)
    info = train_source.info
    model = model.replace(num_classes=info.num_classes)
    if teacher is not None:
        teacher.check_classes(info)
    if training.label_weights and len(training.label_weights) != info.num_classes:
        raise UserError(
            f"`label_weights` has {len(training.label_weights)} values, but {info.name} has "
            f"{info.num_classes} classes; give one weight per class"
        )
    check_input_size(model, *_pair(data.train_crop_size))
    if data.data_service:
        service.require_answer(data.data_service, "data_service")
    return _Plan(
        model=model,
        data=data,
        training=training,
        evaluation=evaluation,
        train_source=train_source,
        eval_source=eval_source,
        teacher=teacher,
        engine=engine,
        strategy=strategy,
        cluster=cluster,
        total_steps=training_steps(training, len(train_source), data.train_batch_size),
    )


def _train(
    plan: _Plan, flags_text: str, callbacks: Sequence[keras.callbacks.Callback]
) -> Report | None:
    with _workdir(plan, flags_text) as workdir:
        run, trained = _build(plan, workdir)
        if plan.is_chief:
            _announce(plan, run)
            workdir.check_space(run.model)
            _start(run, plan.training)
        if plan.cluster is not None:
            workers.sync_with_chief(plan.strategy, run)
        assert run.fresh_statistics is not None
        statistics.warm_up_fresh(
            run.model, run.fresh_statistics, lambda: trained.optimizer.iterations
        )
        _fit(plan, run, trained, callbacks)
        if not plan.is_chief:
            return None
        if run.last_report is None or run.stop_requested:
            logger.info(
                "stopped by SIGTERM at step %d of %d; the run is saved, and the same command "
                "resumes it",
                run.step,
                plan.total_steps,
            )
            return None
        return run.last_report


def _join_cluster(teacher: TeacherFiles | None, *configs: Config) -> Cluster:
    """Waits until all workers are available, and returns this worker's place among them."""
    cluster = Cluster.from_environment()
    common = [
        {name: value for name, value in config.to_dict().items() if name not in DIFFER_BY_WORKER}
        for config in configs
    ]
    training = next(config for config in configs if isinstance(config, TrainConfig))
    cluster.wait_for_all(
        training.worker_timeout,
        hashlib.sha256(
            json.dumps([*common, teacher and teacher.hashes], sort_keys=True).encode()
        ).hexdigest(),
    )
    logger.info(
        "worker %d of %d%s",
        cluster.index,
        len(cluster.hosts),
        " is the chief" if cluster.is_chief else "",
    )
    return cluster


@contextlib.contextmanager
def _workdir(plan: _Plan, flags_text: str) -> Iterator[Workdir]:
    """Opens the run's folder; workers other than the chief get a temporary one."""
    configs = {
        "model": plan.model, "data": plan.data, "train": plan.training, "eval": plan.evaluation,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        path = plan.training.train_logdir
        if not plan.is_chief:
            path = stack.enter_context(tempfile.TemporaryDirectory())
        workdir = stack.enter_context(
            Workdir(
                path,
                configs,
                flags_text,
                teacher=None if plan.teacher is None else plan.teacher.identity(),
                keep=plan.training.keep_checkpoints,
            )
        )
        try:
            yield workdir
        except KeyboardInterrupt:
            step = workdir.newest_step()
            saved = (
                "interrupted before the first checkpoint"
                if step is None
                else f"interrupted; the latest checkpoint is of step {step}, and the same command "
                "resumes from there"
            )
            logger.info("%s: %s", workdir.path, saved)
            raise


def _start(run: Run, training: TrainConfig) -> None:
    """Resumes from the latest checkpoint, or initializes the weights as the config says."""
    if run.restore():
        return
    if training.tf_initial_checkpoint:
        skip_layers: tuple[str, ...] = ()
        if not training.initialize_last_layer:
            group = "classifiers" if training.last_layers_contain_logits_only else "head"
            skip_layers = layers_in_group(run.model, group)
        initialize(
            run.model,
            run.config,
            initial_weights(training.tf_initial_checkpoint),
            skip_layers=skip_layers,
            info=run.info,
        )
    run.fresh_statistics = statistics.find_fresh(run.model)
    if training.tf_initial_checkpoint and not training.recalibrate_batch_norm:
        statistics.warn_of_lag(run.model, run.fresh_statistics, run.total_steps)
    run.start_averages()


def _announce(plan: _Plan, run: Run) -> None:
    """Logs the model, the teacher, the data and the folder of the run before it starts."""
    model, data = plan.model, plan.data
    start = (
        f"from {plan.training.tf_initial_checkpoint}"
        if plan.training.tf_initial_checkpoint
        else "from random weights"
    )
    logger.info(
        "model: %s%s on %s, output stride %d, %d classes, %s",
        f"{model.name}: " if model.name else "",
        model.head,
        model.backbone,
        model.output_stride,
        model.num_classes,
        start,
    )
    if run.teacher is not None:
        logger.info("teacher: %s", run.teacher)
    images = len(plan.train_source)
    logger.info(
        "data: %s, %d training images (%s), %d validation images (%s); %d steps of %d images: "
        "%.3g epochs",
        plan.info.name,
        images,
        data.train_split,
        len(plan.eval_source),
        data.eval_split,
        plan.total_steps,
        data.train_batch_size,
        plan.total_steps * data.train_batch_size / images,
    )
    step = run.workdir.newest_step()
    logger.info(
        "run: %s, %s", run.workdir.path, "new" if step is None else f"resuming from step {step}"
    )


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and the backend.

    Args:
        seed: The seed of all generators.
        deterministic: Whether operations give bit-equal results in every run.
    """
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def training_steps(training: TrainConfig, images: int, batch_size: int) -> int:
    """Returns the length of a run in steps, from `training_number_of_steps` or `epochs`.

    Raises:
        UserError: The run has more than `MOST_STEPS` steps.
    """
    if training.training_number_of_steps:
        return training.training_number_of_steps
    assert training.epochs
    steps = training.epochs * images / batch_size
    if steps > MOST_STEPS:
        raise UserError(
            f"`epochs={training.epochs:g}`: {steps:.3g} steps of {batch_size} images, but at most "
            f"{MOST_STEPS} are allowed; give fewer epochs"
        )
    return max(round(steps), 1)


def _check(training: TrainConfig) -> None:
    steps, epochs = training.training_number_of_steps, training.epochs
    if steps and epochs:
        raise UserError(
            f"`training_number_of_steps={steps}` and `epochs={epochs}` are both set, perhaps one "
            "of them in the flagfile; set one of them to 0"
        )
    if not steps and not epochs:
        raise UserError(
            "the length of the run is not set; set either `training_number_of_steps` or `epochs`"
        )
    if training.top_k_percent_pixels < 1 and "cross_entropy" not in parse_terms(training.loss):
        raise UserError(
            f"`top_k_percent_pixels={training.top_k_percent_pixels}` requires the term "
            f"cross_entropy, which `loss={training.loss}` does not have; set it to 1, or add "
            "cross_entropy to `loss`"
        )
    if training.strategy == MULTI_WORKER and training.jit_compile:
        raise UserError(
            "`jit_compile` cannot be combined with `strategy='multi_worker'`; leave it out"
        )


def _check_batch(data: DataConfig, training: TrainConfig, replicas: int) -> None:
    parts = training.gradient_accumulation_steps
    if data.train_batch_size % (replicas * parts):
        factors = []
        if replicas > 1:
            factors.append(f"the number of devices, {replicas}")
        if parts > 1:
            factors.append(f"`gradient_accumulation_steps={parts}`")
        next_size = -(-data.train_batch_size // (replicas * parts)) * replicas * parts
        raise OptionError(
            "train_batch_size",
            data.train_batch_size,
            f"must be a multiple of {' times '.join(factors)}",
            hint=f"use {next_size}",
        )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    height, width = values
    return height, width


def _build(plan: _Plan, workdir: Workdir) -> tuple[Run, TrainedModel]:
    """Builds the networks, the optimizer and the loss; the weights are still random."""
    config, training, info = plan.model, plan.training, plan.info
    keras.config.set_dtype_policy(training.precision)
    with plan.strategy.scope():
        model = build_segmentor(config)
        for layer in model.layers:
            if isinstance(layer, BatchNormalization):
                layer.freeze_statistics = not training.fine_tune_batch_norm
            layer.trainable = not (training.freeze_backbone and re.match(BACKBONE, layer.name))
        teacher = (
            None
            if plan.teacher is None
            else plan.teacher.load(
                training, info, _pair(plan.data.train_crop_size), config.input_channels
            )
        )
        trained = plan.engine.Model(model.input, model.output, name=model.name)
        trained.set_step(
            parts=training.gradient_accumulation_steps,
            clip_norm=training.clip_gradient_norm,
            ignore_label=info.ignore_label,
            teacher=teacher,
        )
        optimizer = make_optimizer(training, plan.total_steps)
        metric = MeanIoU(info.num_classes, info.ignore_label)
        if config.auxiliary_head:
            trained.auxiliary_loss_weights["auxiliary_logits"] = training.auxiliary_loss_weight
        trained.compile(
            optimizer=optimizer,
            loss=_loss(training, info, optimizer),
            metrics=[metric],
            jit_compile=training.jit_compile or plan.engine.ALWAYS_COMPILED,
        )
        trained.optimizer.build(trained.trained_variables)
    run = Run(
        model,
        plan.engine,
        config,
        info,
        trained.optimizer,
        workdir,
        plan.total_steps,
        plan.data.train_batch_size,
        metric,
        average_momentum=training.ema_momentum,
        teacher=teacher,
    )
    return run, trained


def _loss(
    training: TrainConfig, info: DatasetInfo, optimizer: keras.optimizers.Optimizer
) -> SegmentationLoss:
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


def _fit(
    plan: _Plan,
    run: Run,
    trained: TrainedModel,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Runs the remaining steps, with evaluations and checkpoints."""
    data, training, strategy, cluster = plan.data, plan.training, plan.strategy, plan.cluster
    train_source = plan.train_source
    pad_value = NORMALIZATIONS[run.config.normalization][0]

    def measure(batches: int) -> dict[str, np.ndarray]:
        stream = pipeline.train_dataset(
            train_source, data, pad_value, start_step=max(run.step - batches, 0)
        )
        layers = [layer.name for layer in statistics.updated_layers(run.model)]
        return statistics.measure(run.config, run.weights(), layers, stream.take(batches))

    validation = Validation(
        run, plan.eval_source, plan.evaluation, training, data, train_source, measure
    )

    def batch_of(step: int) -> Batch:
        stream = pipeline.sample_stream(
            len(train_source), data.seed, data.train_batch_size, step - 1
        )
        names = tuple(
            train_source.names[int(index)] for _, index in stream.take(data.train_batch_size)
        )
        images, labels = next(
            iter(pipeline.train_dataset(train_source, data, pad_value, start_step=step - 1))
        )
        return Batch(names, np.asarray(images), np.asarray(labels))

    steps = Steps(run, batch_of, training.profile_steps)
    rounds = Rounds(
        run,
        steps,
        save_steps=training.save_interval_steps,
        patience=training.early_stopping,
        round_steps=max(
            round(training.eval_interval_epochs * len(train_source) / data.train_batch_size), 1
        ),
        histograms=training.summary_histograms,
        evaluate=validation.evaluate,
        pictures=validation.pictures,
        conclude=validation.conclude,
        diagnose=validation.diagnose,
        measure=lambda: (
            measure(training.recalibrate_batch_norm) if training.recalibrate_batch_norm else {}
        ),
    )
    part = (0, 1) if cluster is None else (cluster.index, len(cluster.hosts))
    try:
        with stop_on_sigterm(run):
            if plan.is_chief:
                rounds.resume()
            finished = rounds.finished or run.stop_requested
            if cluster is not None:
                finished = bool(workers.broadcast_from_chief(strategy, [np.array([finished])])[0])
            if finished:
                return
            batches = pipeline.train_dataset(
                train_source, data, pad_value, start_step=run.step, part=part
            )
            if cluster is not None:
                workers.fit(
                    strategy, trained, batches, run, [steps, rounds] if plan.is_chief else []
                )
                return
            with run.engine.fit_scope(strategy):
                trained.fit(
                    batches,
                    steps_per_epoch=run.total_steps - run.step,
                    shuffle=False,
                    verbose=0,
                    callbacks=[steps, rounds, *callbacks],
                )
    except tf.errors.OpError as error:
        user_error = pipeline.user_error(error, train_source)
        if user_error is None:
            raise
        raise user_error from error
    finally:
        steps.stop_profiler()
