"""What of the inputs is not read, counted and named."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

Reason = tuple[str, str]
"""What one such thing is called, and several."""
OTHER_KINDS = ("file of another ending", "files of other endings")
FOLDERS = ("folder, hidden or of a cache", "folders, hidden or of caches")
HIDDEN = ("hidden file", "hidden files")
EMPTY = ("file that is empty", "files that are empty")
CLOSED = ("folder that cannot be listed", "folders that cannot be listed")
BEYOND = ("file beyond max_files", "files beyond max_files")
ODD = ("link to nothing or special file", "links to nothing or special files")
_N_NAMED = 5


class LeftOut:
    """Names by reason; equal names, as of endings, are counted."""

    def __init__(self) -> None:
        self._names: defaultdict[Reason, Counter[str]] = defaultdict(Counter)

    def add(self, reason: Reason, name: str) -> None:
        self._names[reason][name] += 1

    def lines(self) -> Iterator[str]:
        """One for each reason: how many, and the first names."""
        for reason, names in self._names.items():
            shown = [f"{name} ({n})" if n > 1 else name for name, n in names.most_common(_N_NAMED)]
            more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
            yield f"left out {names.total()} {reason[names.total() > 1]}: {', '.join(shown)}{more}"

    def __contains__(self, reason: Reason) -> bool:
        return reason in self._names
