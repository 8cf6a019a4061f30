"""Command-line flags of the scripts, made from the dataclasses of config.

Flags stop at the door: a script gets a `Command`, takes configs from it and calls the library with
them.

    @dataclasses.dataclass(frozen=True)
    class Options(Config):
        checkpoint_dir: str = option("", "a workdir or a checkpoint")

    def main(command: Command) -> None:
        checkpoint = load_checkpoint(command.config(Options).checkpoint_dir)
        evaluate(..., command.config(EvalConfig))

    SECTIONS = (Options, EvalConfig)

as a module of `commands`, and three lines in scripts/ that run it.

Every script accepts every flag of a recipe, so that one flagfile serves training, evaluation and
export; a flag that a script has no use for is an error on its command line and ignored in a
flagfile. Nothing here imports TensorFlow: `--help` and a mistyped flag answer at once.
"""

from deeplab_keras.cli.command import RECIPE, Command
from deeplab_keras.cli.fields import ALIASES, HELP_WIDTH, TITLES, flag_name, help_text
from deeplab_keras.cli.script import call, require_tensorflow, run, run_command

__all__ = [
    "ALIASES", "HELP_WIDTH", "RECIPE", "TITLES", "Command", "call", "flag_name", "help_text", "require_tensorflow", "run",
    "run_command",
]  # fmt: skip
