"""`python -m scaling COMMAND ...`, and `scaling COMMAND ...` where it is installed: any command by
its name."""

from __future__ import annotations

import importlib
import sys

from scaling.composition.flags import answered
from scaling.config.spelling import TYPED, did_you_mean
from scaling.errors import ConfigError
from scaling.screen import print_help

COMMANDS = {
    "run": "train one configuration, or with -m a study of many; the same command again continues",
    "plan": "rank every legal layout of a model on a cluster",
    "prepare": "make shards of text, JSON lines, parquet and tars",
    "status": "list the runs of a directory, and how they stand",
    "generate": "continue a text with a trained model",
    "fill": "fill the gaps of a text with a trained BERT",
    "convert": "write a run's weights as safetensors",
    "fit": "fit scaling laws to a study or a table",
    "predict": "ask a fitted law for the best size, a loss or a budget",
    "rehearse": "kill a run at random and compare its curve with an unbroken one",
}
HELP = f"""\
python -m scaling COMMAND [KEY=VALUE] ...

{chr(10).join(f"  {name:<10} {meaning}" for name, meaning in COMMANDS.items())}

`python -m scaling COMMAND --help` lists what a command takes. To begin: python -m scaling run dry_run=true
Exit codes: 0 finished; 2 configuration or plan wrong; 75 stopped, the same command continues; 1 anything else."""


def main() -> int:
    """Run the command that the first word names; returns its exit code."""
    name, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("help", [])
    if name == "help" and words and words[0] in COMMANDS:
        name, words = words[0], ["--help"]
    if name not in COMMANDS:
        return _own_answer(name)
    sys.argv = [f"scaling {name}", *words]
    main_of = importlib.import_module(f"scaling.{name}").main
    return main_of() or 0


def _own_answer(name: str) -> int:
    if answered([name], lambda: print_help(HELP)):
        return 0
    known = "=" in name
    fix = (
        f"To train: python -m scaling run {name}"
        if known
        else f"{did_you_mean(name, list(COMMANDS))}There are: "
    )
    fix += "" if known else f"{', '.join(COMMANDS)}."
    error = ConfigError(f"there is no command {name!r}", TYPED, fix)
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
