"""The command line: flags are defined from the config classes, and turned into configs.

The library does not know flags. A command gets a `Command`, takes configs from it, and calls the
library with them:

    @dataclasses.dataclass(frozen=True)
    class EvaluationOptions(Config):
        checkpoint_dir: str = option("", "a workdir or a checkpoint")

    def main(command: Command) -> None:
        checkpoint = load_checkpoint(command.config(EvaluationOptions).checkpoint_dir)
        evaluate(..., command.config(EvalConfig))

    SECTIONS = (EvaluationOptions, EvalConfig)

This is a module of `commands`. A script of three lines in scripts/ runs it, and so does
`deeplab-keras NAME` (`main`).

Every script accepts the flags of all recipes, so one flagfile serves training, evaluation and
export. A flag that a script does not use is an error on the command line and ignored in a flagfile.
This package does not import TensorFlow, so `--help` and errors in flags respond immediately.
"""

from deeplab_keras.cli.command import RECIPE, Command
from deeplab_keras.cli.fields import ALIASES, HELP_WIDTH, TITLES, flag_name, help_text
from deeplab_keras.cli.script import call, load_keras, require_backend, run, run_command

__all__ = [
    "ALIASES",
    "HELP_WIDTH",
    "RECIPE",
    "TITLES",
    "Command",
    "call",
    "flag_name",
    "help_text",
    "load_keras",
    "require_backend",
    "run",
    "run_command",
]
