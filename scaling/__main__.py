"""`python -m scaling VERB ...` and `scaling VERB ...`: one program that runs every command by its
name."""

from __future__ import annotations

import importlib
import sys

from scaling.commands import entry
from scaling.commands.fitted_help import print_help
from scaling.commands.verbs import VERBS
from scaling.composition.flags import answered
from scaling.config.spelling import TYPED, did_you_mean
from scaling.errors import ConfigError

HELP = f"""\
scaling COMMAND [KEY=VALUE] ...

{chr(10).join(f"  {name:<10} {meaning}" for name, meaning in VERBS.items())}

`scaling COMMAND --help` lists what a command takes; `python -m scaling COMMAND` is the same.
To begin: scaling run dry_run=true. Tab completion: eval "$(scaling completion bash)"
Exit codes: 0 finished; 2 configuration or plan wrong; 75 stopped, the same command continues;
1 anything else."""


def main() -> int:
    """Run the command that the first word names; returns its exit code."""
    name, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("help", [])
    if name == "help" and words and words[0] in VERBS:
        name, words = words[0], ["--help"]
    if name not in VERBS:
        return _own_answer(name)
    sys.argv = [f"scaling {name}", *words]
    return importlib.import_module(f"scaling.{name}").main() or 0


def _own_answer(name: str) -> int:
    if answered([name], lambda: print_help(HELP)):
        return 0
    if "=" in name:
        fix = f"To train: python -m scaling run {name}"
    else:
        fix = f"{did_you_mean(name, list(VERBS))}There are: {', '.join(VERBS)}."
    error = ConfigError(f"there is no command {name!r}", TYPED, fix)
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return error.exit_code


def program() -> None:
    """The console script."""
    entry.leave(main())


if __name__ == "__main__":
    program()
