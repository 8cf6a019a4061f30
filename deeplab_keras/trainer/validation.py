"""What a training does with its validation images: scores at every round, pictures, and a page at the end."""

from __future__ import annotations

import numpy as np

from deeplab_keras.callbacks import Run
from deeplab_keras.config import EvalConfig, TrainConfig
from deeplab_keras.data import Source
from deeplab_keras.evaluation import Details, Report, draw_panel, evaluate, write_report
from deeplab_keras.inference import Network, Predictor


class Validation:
    """Evaluates a run on the images of a source.

    Args:
        run: its model has the weights to evaluate whenever a method is called.
        source: the validation images.
        config: how they are inferred.
        training: how many pictures are drawn, and whether there is a page.
        split: its name in the reports.
    """

    def __init__(self, run: Run, source: Source, config: EvalConfig, training: TrainConfig, split: str) -> None:
        self.run, self.source, self.config, self.training, self.split = run, source, config, training, split
        self.network = Network(run.model)
        self.predictor = Predictor(self.network, config)
        self.details: Details | None = None

    def evaluate(self) -> Report:
        """The scores; those of the last step with what the page needs."""
        return self._evaluate(self.training.html_report and self.run.step >= self.run.total_steps)

    def pictures(self) -> list[np.ndarray]:
        """Panels of the first images, uint8 `[height, width, 3]`."""
        count = min(self.training.summary_images, len(self.source))
        samples = [self.source.load(index) for index in range(count)]
        return [draw_panel(self.predictor, image, label, self.run.info) for image, label in samples]

    def conclude(self, report: Report) -> None:
        """Writes the last evaluation's metrics and report.html into the run's folder."""
        if self.training.html_report and self.details is None:  # the training has stopped early
            report = self._evaluate(detailed=True)
        folder = self.run.workdir.path
        write_report(folder, report, self.details, self.predictor, self.source, training_csv=folder / "training.csv")

    def _evaluate(self, detailed: bool) -> Report:
        self.details = Details(self.run.info, boundaries=False) if detailed else None
        name = self.run.config.name
        return evaluate(self.network, self.source, self.config, model_name=name, split=self.split, details=self.details)
