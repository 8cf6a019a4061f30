"""What happens around the steps of a training: the progress line, evaluation, checkpoints, TensorBoard.

A training is one call of `fit` with one long epoch. These callbacks cut it into rounds by the step, so that a resumed
run, which starts anywhere, does everything at the same steps as an undisturbed one.
"""

from deeplab_keras.callbacks.rounds import Rounds
from deeplab_keras.callbacks.run import Run, stop_on_sigterm
from deeplab_keras.callbacks.steps import Steps

__all__ = ["Rounds", "Run", "Steps", "stop_on_sigterm"]
