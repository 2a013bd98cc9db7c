"""What a command that composes a configuration, and is no run, does with its words."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.composition.flags import FLAGS
from scaling.composition.known import keys, refuse_mistyped
from scaling.composition.shorthand import in_full
from scaling.config.spelling import no_flag


def refuse_words(words: Sequence[str], flags: Sequence[str] = (), own: Sequence[str] = ()) -> None:
    """Raises ConfigError for a flag, a key or an option that does not exist, before Hydra is
    loaded.

    flags: those that the command takes itself. own: its own keys, which an error offers too.
    """
    for number, word in enumerate(words):
        if word.startswith("-"):
            raise no_flag(words, number, [*own, *keys()], (*flags, *FLAGS))
    refuse_mistyped(in_full(words))
