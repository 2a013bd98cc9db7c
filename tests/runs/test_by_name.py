"""Which run a word means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scaling import status
from scaling.errors import ConfigError
from scaling.runs.by_name import find_run

NAMES = (
    "gpt_nano-0001aaaa",
    "gpt_nano-00bbbbbb",
    "gpt_nano_big-00cccccc",
    "sweep/gpt_nano-lr3-dddddddd",
    "gpt-nano-eeeeeeee",
    "e-00dddddd",
    "e-0-00eeeeee",
)
"""The first is the one that was at work last."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for age_s, name in enumerate(NAMES):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("{}")
        (tmp_path / name / "events.jsonl").write_text("")
        os.utime(tmp_path / name / "events.jsonl", (1e9 - age_s, 1e9 - age_s))
    return tmp_path


@pytest.mark.parametrize(
    ("word", "found", "others"),
    [
        ("gpt_nano", NAMES[0], [NAMES[1]]),
        ("gpt_nano-00", NAMES[0], [NAMES[1]]),
        ("gpt_nano-00b", NAMES[1], []),
        ("00bb", NAMES[1], []),
        ("0001aaaa", NAMES[0], []),
        ("gpt_nano_big", NAMES[2], []),
        ("gpt_nano-lr3", NAMES[3], []),
        ("gpt_nano-lr3-d", NAMES[3], []),
        ("sweep/gpt_nano-lr3-dddddddd", NAMES[3], []),
        ("gpt-nano", NAMES[4], []),
        ("00", NAMES[0], [NAMES[1], NAMES[2], NAMES[5], NAMES[6]]),
        ("e", NAMES[5], []),  # also the beginning of an id
        ("e-0", NAMES[6], []),  # also the beginning of the older e-00dddddd
    ],
)
def test_a_run_is_found_by_name_or_the_beginning_of_its_id(
    root: Path, word: str, found: str, others: list[str]
) -> None:
    said: list[str] = []
    assert find_run(word, str(root), said.append) == root / found
    assert len(said) == bool(others)
    for note in said:
        assert f"taking {Path(found).name}, the newest" in note
        assert all(other in note for other in others)


def test_the_note_names_eight_of_many(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"a-{number:08x}").mkdir()
        (tmp_path / f"a-{number:08x}" / "config.yaml").write_text("{}")
    notes: list[str] = []
    find_run("a", str(tmp_path), notes.append)
    assert notes[0].count("a-000000") == 1 + 8
    assert "and 51 more" in notes[0]


def test_a_path_and_a_whole_name_come_before_names(root: Path) -> None:
    for word in (str(root / NAMES[1]), NAMES[1]):
        assert find_run(word, str(root), pytest.fail) == root / NAMES[1]


@pytest.mark.parametrize(
    "word",
    ["gpt", "gpt_", "gpt_nano-", "gpt_nano-01", "nano", "aaaa", "gpt_nano-00bbbbbbb", "GPT_NANO"],
)
def test_what_is_no_run_is_refused_with_those_there_are(root: Path, word: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no run '{word}'") as caught:
        find_run(word, str(root), pytest.fail)
    assert NAMES[3] in (caught.value.fix or "")


def test_status_takes_names_of_runs_too(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert status.main([f"run.root={root}", "gpt_nano", "--json"]) == 0
    out, err = capsys.readouterr()
    assert f'"name": "{NAMES[0]}"' in out
    assert len(out.splitlines()) == 1
    assert "the newest" in err
    assert status.main([f"run.root={root}", "gpt_micro"]) == 2
    assert "there is no run 'gpt_micro'" in capsys.readouterr().err
