"""docs/reliability_data.md says, word for word, what a user reads when data are bad."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.bad_data import CASES, Place, make
from tests.support.web_server import serving

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability_data.md"


def table() -> dict[str, str]:
    """What is wrong -> what is said, from the rows of the document's table."""
    rows = re.findall(r"^\| (.+?) \| `(.+)` \|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return dict(rows)


def plain(text: str, place: Place) -> str:
    """The text on one line, without what differs from one machine or moment to the next."""
    for old, new in (
        (place.web.url, "URL"),
        (str(place.shards), "DIR"),
        (str(place.root), "PLACE"),
    ):
        text = text.replace(old, new)
    text = re.sub(r"the last of \d+ attempts in \d+ s", "the last of N attempts in S s", text)
    return re.sub(
        r"only \d+ bytes came in \d+ s", "only N bytes came in S s", " ".join(text.split())
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    make(tmp_path)
    with serving(monkeypatch) as web:
        yield Place(tmp_path, web, monkeypatch)


def test_the_table_and_the_cases_are_the_same() -> None:
    assert table().keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_what_a_user_reads(place: Place, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert plain(CASES[name](place, capsys), place) == table().get(name)


def test_sound_shards_are_read(place: Place) -> None:
    assert place.read() == place.read(place.served()) == "nothing"
