"""Tables, help and small curves at the widths of real terminals."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from scaling import generate
from scaling.commands import options
from scaling.commands.fitted_help import fitted_help
from scaling.commands.progress import ProgressBar
from scaling.inference import text as text_module
from scaling.inference.options import GenerateOptions
from scaling.launch.console import ProgressLine
from scaling.launch.run import _corpus_reporter
from scaling.launch.summary import print_summary
from scaling.runs.directory import RunDir
from scaling.screen import (
    Column,
    FittedTable,
    fitted_lines,
    sparkline,
    visible,
    wrapped,
)
from scaling.terminal import print_items
from scaling.units import counted

COLUMNS = (
    Column("run", wraps=True),
    Column("lr"),
    Column("loss", 1),
    Column("tokens", 3),
    Column("restarts", 7),
)
ROWS = (
    ("isoflop/gpt_nano-1a2b3c4d", "0.00106", "3.2101", "1.74 M", "0"),
    ("isoflop/gpt_nano-5e6f7a8b", "0.00212", "3.1987", "1.52 M", "0"),
)


def screen(width: int, rows: tuple[tuple[str, ...], ...] = ROWS) -> str:
    table = FittedTable(COLUMNS, "Runs", note="Two runs.")
    for row in rows:
        table.add(*row)
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_all_columns_are_there_where_they_fit() -> None:
    text = screen(80)
    for cell in (*ROWS[0], *ROWS[1], *(column.heading for column in COLUMNS)):
        assert cell in text
    assert "Left out" not in text


def test_columns_go_by_priority_and_are_named() -> None:
    assert "Left out at 56 columns: restarts (all 0)." in screen(56).replace("\n", " ")
    text = screen(45)
    assert "Left out at 45 columns: tokens, restarts (all 0)." in text.replace("\n", " ")
    assert "3.2101" in text, "the loss goes last"


@given(st.integers(12, 140))
def test_no_line_is_too_wide_and_no_cell_that_matters_is_cut(width: int) -> None:
    text = screen(width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    if width >= 20:
        for run, lr, *_ in ROWS:
            assert lr in text, "a number is never broken"
            assert all(part in text for part in (run.split("-")[1], "isoflop/"))


def test_names_break_behind_their_words() -> None:
    assert wrapped("isoflop/gpt_nano-1a2b3c4d", 12) == ["isoflop/", "gpt_nano-", "1a2b3c4d"]
    assert wrapped("a/gpt_nano_67.9k", 10) == ["a/", "gpt_nano_", "67.9k"]
    assert wrapped("a few words here", 9) == ["a few", "words", "here"]
    assert wrapped("abcdefghij", 4) == ["abcd", "efgh", "ij"]


@given(st.text("ab-_/. ", max_size=40), st.integers(1, 20))
def test_wrapping_loses_nothing(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert max(map(len, lines)) <= width
    assert squeezed("".join(lines)) == squeezed(text)


def test_help_keeps_its_columns_and_long_commands_can_be_pasted() -> None:
    text = fitted_help(
        "Usage: x\n\nOne sentence that is rather long.\nAnother.\n\n"
        "  key=value   what it means, in so many words\n  k=v   some more of these words\n"
        "  python -m scaling.run model=gpt_7b cluster=2x8xL40S plan.top=10",
        30,
    )
    assert max(map(len, text.splitlines())) <= 30
    assert "  key=value\n        what it means, in so\n        many words\n" in text
    assert "  k=v   some more of these\n        words\n" in text
    command = text[text.index("  python") :]
    assert (
        squeezed(command.replace("\\\n", ""))
        == "python-mscaling.runmodel=gpt_7bcluster=2x8xL40Splan.top=10"
    )
    assert command.count("\\\n") == command.count("\n")


def test_lines_that_fit_stay_as_they_are() -> None:
    text = "One.\nTwo, which goes\non here.\n  a  b"
    assert fitted_help(text, 80) == text
    assert fitted_lines("  deep words that go on", 14) == ["  deep words", "    that go on"]


def test_a_sparkline_shows_the_course() -> None:
    assert sparkline([4.0, 3.0, 2.0, 1.0]) == "█▆▃▁"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([1.0]) == sparkline([]) == sparkline([1.0, math.nan]) == ""
    assert len(sparkline(range(1000), 12)) == 12
    assert sparkline([math.inf, 1.0, 2.0]) == "▁█"


@pytest.mark.parametrize(("number", "text"), [(0, "0 workers"), (1, "1 worker"), (2, "2 workers")])
def test_nouns_are_counted(number: int, text: str) -> None:
    assert counted(number, "worker") == text


HOSTILE = "a\x1b[2Jb\x07c\rd\x9be\x7f\u202ef\ttab\nline é 😀"
SHOWN = "a\\x1b[2Jb\\x07c\\x0dd\\x9be\\x7f\\u202ef\ttab\nline é 😀"


def test_a_strangers_text_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert visible(HOSTILE) == SHOWN
    table = FittedTable([Column("name"), Column("state")])
    table.add(HOSTILE.split("\t")[0], Text(HOSTILE.split("\t")[0], style="red"))
    print_items([HOSTILE, table])
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\r\x9b\x7f\u202e")
    assert out.count("a\\x1b[2Jb") == 3


def test_what_is_told_of_strangers_names_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    name = "run\x1b]0;x\x07"
    options.say(name)
    with ProgressBar() as bar:
        bar.report(f"skipped {name}", None)
    out = io.StringIO()
    with ProgressLine(Console(file=out, width=99)) as line:
        line.say(name)
    _corpus_reporter(Console(file=out, width=99))(f"reading {name} [bold]", None)
    found = capsys.readouterr()
    for text in (found.err, out.getvalue()):
        assert "\\x1b]0;x\\x07" in text
        assert "\x1b" not in text
    assert "[bold]" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_writes_is_raw_in_a_pipe_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = SimpleNamespace(title="r, after step 3", open=lambda device: None)
    monkeypatch.setattr(generate, "find_source", lambda *_: None)
    monkeypatch.setattr(generate, "TrainedSource", lambda _: found)
    monkeypatch.setattr(text_module, "texts", lambda *_: iter([iter(["ab\x1b", "[2J\n"])]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    generate.generate(GenerateOptions.model_validate({"from": "r", "prompt": "p"}))
    assert capsys.readouterr().out == ("ab\\x1b[2J\n\n" if terminal else "ab\x1b[2J\n\n")


def test_the_summary_shows_a_sample_and_both_times(tmp_path: Path) -> None:
    out = io.StringIO()
    losses = dict.fromkeys(("train_loss", "val_loss", "best_val_loss", "val_ppl"), 2.0)
    summary = {
        **losses,
        "val_bits_per_byte": None,
        "baselines": {},
        "steps": 20,
        "n_tokens": 100,
        "flops": 1e9,
        "wall_s": 2.3,
        "restarts": 0,
        "seconds": {"starting": 48.7, "productive": 2.0, "evaluating": 10.3},
        "tokens_per_s": 50.0,
        "sample": HOSTILE,
    }
    print_summary(Console(file=out, width=200), RunDir(tmp_path), summary)
    text = " ".join(out.getvalue().split())
    assert "time training 2.3 s of 1 min 01 s since the command, restarts 0" in text
    assert "where it went starting 79.8%" in text
    assert "a\\x1b[2Jb" in text
    assert not set(text) & set("\x1b\x07\x9b\u202e")
