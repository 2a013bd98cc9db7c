"""`scaling completion bash`: tab completion of commands, groups, options, keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.commands import entry

USAGE = """\
Usage: eval "$(scaling completion bash)"

python -m scaling.completion prints the script that completes `scaling` in a shell: commands,
groups, options, keys, values and names of runs. Put the line above into ~/.bashrc. In zsh:

  autoload -U +X bashcompinit && bashcompinit && eval "$(scaling completion bash)"

  scaling completion bash        the script
  scaling completion words LINE  what may stand at the end of LINE; the script calls it"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code is 0, or 2 for an unknown shell."""
    return entry.enter(_command, argv, after_stop=entry.AGAIN)


def _command(words: list[str]) -> int:
    """Print the script or the candidates."""
    from scaling.commands.completion import BASH, SHELLS, candidates
    from scaling.commands.fitted_help import print_help
    from scaling.composition.flags import answered
    from scaling.errors import ConfigError

    if words[:1] == ["words"]:  # first: the line itself may contain --help
        print("\n".join(candidates(" ".join(words[1:]))))
        return 0
    if answered(words, lambda: print_help(USAGE)):
        return 0
    if len(words) == 1 and words[0] in SHELLS:
        print(BASH, end="")
        return 0
    shells = ", ".join(SHELLS)
    if not words:
        raise ConfigError("no shell is named", None, f"Write: scaling completion {SHELLS[0]}.")
    given = " ".join(words)
    raise ConfigError(f"there is no completion for {given!r}", None, f"There is: {shells}.")


if __name__ == "__main__":
    entry.leave(main())
