"""A handle on something trained that has been found, before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scaling import markup
from scaling.api.arguments import ROOT, named, report

if TYPE_CHECKING:
    from scaling.inference.trained import Trained
    from scaling.weights.source import Source


def find_trained(word: str, root: str | Path = "runs") -> TrainedSource:
    """Find something trained by the word that commands take as from=.

    A word is RUN[@STEP], an export's directory, hf:DIRECTORY_OR_NAME[@REVISION] or gguf:FILE.
    Raises ConfigError where there is none.
    """
    from scaling.weights.source import find_source

    with named("scaling.find_trained", ROOT):
        return TrainedSource(find_source(word, str(root), report))


@dataclass(frozen=True, repr=False)
class TrainedSource:
    """Something trained; `open` loads its weights."""

    source: Source

    @property
    def title(self) -> str:
        """The name, and for a run the steps behind its checkpoint."""
        return self.source.title

    @property
    def content_hash(self) -> str:
        """SHA-256 over weights, settings and tokenizer."""
        return self.source.content_hash

    def open(self, *, device: str = "auto") -> Trained:
        """Configuration, tokenizer and model, in evaluation mode in fp32."""
        from scaling.inference.trained import find_device, open_trained

        return open_trained(self.source, find_device(device))

    def __repr__(self) -> str:
        return f"<TrainedSource {self.title}>"

    def _repr_html_(self) -> str:
        rows = [("from", self.source.word), ("kind", self.source.kind), ("path", self.source.path)]
        if self.source.step is not None:
            rows.append(("step", self.source.step))
        return markup.table((), rows, self.title)
