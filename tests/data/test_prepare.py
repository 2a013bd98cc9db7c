"""scaling.prepare: every document of every format once, the same bytes however it is done, and
errors that say what to do."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling import prepare
from scaling.data.prepare import command, inputs, ordering, pieces
from scaling.data.prepare.options import PrepareOptions
from scaling.data.prepare.tasks import silent
from scaling.data.read.stream import check_shards
from scaling.data.shards import CorpusIndex
from scaling.errors import ConfigError
from tests.support.prepare_inputs import (
    contents,
    documents_of,
    json_lines,
    tar_of,
    texts,
    write_inputs,
)

BYTE = ("tokenizer=byte", "shard_tokens=5000")


def run(*words: str) -> int:
    return prepare.main(list(words))


@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "wordpiece"])
def test_every_document_of_every_format_is_kept_once(tmp_path, capsys, tokenizer):
    documents = texts(150)
    pattern = write_inputs(tmp_path / "in", [*documents, *documents[:20], "", ""])
    size = {"byte": (), "bpe": ("vocab_size=450",), "wordpiece": ("vocab_size=600",)}[tokenizer]
    assert (
        run(
            f"inputs={pattern}",
            f"out={tmp_path / 'out'}",
            f"tokenizer={tokenizer}",
            "shard_tokens=3000",
            *size,
        )
        == 0
    )
    train, val = (documents_of(tmp_path / "out", split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(documents)
    assert len(val) > 1
    index = CorpusIndex.load(tmp_path / "out")
    assert len(index.split("train")) > 1
    assert all(
        check_shards(tmp_path / "out", index, split, full=True) == [] for split in index.splits
    )
    out, err = capsys.readouterr()
    assert "150 documents, without 20 exact duplicates and 2 empty ones" in err
    assert "tokens/s" in out
    assert out.count("documents") == 1, "the summary comes once"
    assert "wrote" not in err
    assert f"tokenizer={tokenizer} tokenizer.vocab_size={index.tokenizer.vocab_size}" in out


def test_bytes_do_not_depend_on_processes_pieces_runs_or_names(tmp_path, monkeypatch):
    documents = texts(200)
    first = write_inputs(tmp_path / "in", documents)
    other = write_inputs(tmp_path / "renamed", documents[::-1])
    words = ("tokenizer=bpe", "vocab_size=500", "shard_tokens=4000")
    assert run(f"inputs={first}", f"out={tmp_path / 'one'}", "processes=1", *words) == 0
    assert run(f"inputs={other}", f"out={tmp_path / 'two'}", "processes=2", *words) == 0
    for module in (pieces, inputs):
        monkeypatch.setattr(module, "PIECE_BYTES", 500)
    monkeypatch.setattr(ordering, "RUN_BYTES", 2000)
    monkeypatch.setattr("scaling.data.prepare.build.RUN_BYTES", 3000)
    monkeypatch.setattr(ordering, "FAN_IN", 3)
    assert run(f"inputs={first}", f"out={tmp_path / 'three'}", "processes=1", *words) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_ranges_of_a_file_hold_each_line_once(tmp_path, monkeypatch, size):
    documents = texts(30)
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(documents).rstrip(b"\n"))
    monkeypatch.setattr(inputs, "PIECE_BYTES", size)
    found = [
        text
        for piece in inputs.find_pieces([str(path)])
        for text in pieces.read_piece(piece, pieces.Reading())
    ]
    assert found == documents


def start(*words: str) -> subprocess.Popen[str]:
    """The command, in a process whose stages each take a while."""
    code = (
        "import sys, time\nfrom scaling.commands.progress import ProgressBar\nfrom scaling import "
        "prepare\n"
        f"from scaling.data.prepare import ordering\nordering.FAN_IN = {ordering.FAN_IN}\n"
        "def report(self, message, part):\n    part == 0 or print(message, "
        "flush=True)\n    time.sleep(0.05)\n"
        "ProgressBar.report = report\nsys.exit(prepare.main(sys.argv[1:]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "stage",
    [
        "reading",
        "merging",
        "ordering",
        "training the tokenizer",
        "tokenising",
        "writing the train",
        "wrote",
    ],
)
def test_killed_it_goes_on_and_ends_with_the_same_bytes(tmp_path, stage, capsys, monkeypatch):
    monkeypatch.setattr(ordering, "FAN_IN", 2)
    pattern = write_inputs(tmp_path / "in", texts(100))
    words = (
        f"inputs={pattern}",
        "tokenizer=bpe",
        "vocab_size=400",
        "shard_tokens=2000",
        "processes=1",
    )
    assert run(*words, f"out={tmp_path / 'whole'}") == 0
    out = tmp_path / "killed"
    with start(*words, f"out={out}") as process:
        for line in process.stdout:
            if line.startswith(stage):
                break
        process.send_signal(signal.SIGKILL)
    kept = (
        {path.name: path.stat().st_mtime_ns for path in (out / ".work").glob("*.json")}
        if (out / ".work").exists()
        else {}
    )
    capsys.readouterr()
    assert run(*words, f"out={out}") == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert not (out / ".work").exists()
    assert "tokens/s" not in capsys.readouterr().out  # not all of the work was done in this call
    assert bool(kept) == (stage != "wrote")


def test_finished_work_is_not_done_again(tmp_path, monkeypatch):
    pattern = write_inputs(tmp_path / "in", texts(60))
    words = (f"inputs={pattern}", f"out={tmp_path / 'out'}", *BYTE, "processes=1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("scaling.data.prepare.build.encode_bucket", full)
        assert run(*words) == 1
    with monkeypatch.context() as patch:
        patch.setattr("scaling.data.prepare.build.sort_piece", full)
        patch.setattr("scaling.data.prepare.build.merge_bucket", full)
        assert run(*words) == 0


def test_workers_die_with_their_parent(tmp_path):
    code = (
        "import multiprocessing, sys, time\nfrom scaling.data.prepare.tasks import Work\nfrom "
        "pathlib import Path\n"
        "from tests.support.prepare_tasks import sleep\n"
        "if __name__ == '__main__':\n"
        "    with Work(Path(sys.argv[1]), 2, print) as work:\n        work.run(sleep, 's', [(60,), "
        "(60,)], 'sleeping')\n"
    )
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{code}")
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)]) as process:
        deadline_s = time.monotonic() + 30
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
        process.kill()
    assert len(pids) == 2
    deadline_s = time.monotonic() + 5
    while any(_lives(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not any(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    """A zombie, which some containers never reap, is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_at_once_and_other_options_are_refused(tmp_path, capsys):
    pattern = write_inputs(tmp_path / "in", texts(30))
    words = (f"inputs={pattern}", f"out={tmp_path / 'out'}", *BYTE, "processes=1")
    with start(*words) as process:
        next(process.stdout)
        assert run(*words) == 2
        assert "another process prepares a corpus" in capsys.readouterr().err
        process.communicate()
    assert process.returncode == 0
    assert run(*words) == 0  # it is there
    assert "already there" in capsys.readouterr().err
    assert run(*words, "val_fraction=0.2") == 2
    assert "other inputs or options" in capsys.readouterr().err
    (tmp_path / "in" / "new.txt").write_text("changed")
    assert run(*words) == 2
    assert run(f"inputs={pattern}", f"out={tmp_path / 'in'}", *BYTE) == 2
    assert "is not empty" in capsys.readouterr().err


BAD = {
    "latin.txt": (b"caf\xe9", "latin.txt is not UTF-8 text: byte 0xe9 at 3"),
    "torn.jsonl": (b'{"text": "a"}\n{"text": \n', "torn.jsonl is not JSON"),
    "field.jsonl": (b'{"content": "a"}\n', "has no text in 'text', but: content"),
    "half.jsonl": (b'{"text": "\\ud83d"}\n', "half of a surrogate pair"),
    "long.txt": (b"x" * 5000, "is longer than max_document=4000 bytes"),
    "long.jsonl": (
        b'{"text": "' + b"x" * 40000 + b'"}\n{"text": "short"}\n',
        "is longer than max_document=4000 bytes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_unfit_documents_are_refused_or_left_out(tmp_path, capsys, name):
    content, message = BAD[name]
    pattern = write_inputs(tmp_path / "in", texts(30))
    (tmp_path / "in" / name).write_bytes(content)
    words = (f"inputs={pattern}", *BYTE, "processes=1", "max_document=4000")
    assert run(*words, f"out={tmp_path / 'out'}") == 1
    assert message in capsys.readouterr().err
    assert run(*words, f"out={tmp_path / 'skipped'}", "on_bad=skip") == 0
    assert message in capsys.readouterr().err
    found = documents_of(tmp_path / "skipped", "train") + documents_of(tmp_path / "skipped", "val")
    fit = {"torn.jsonl": ["a"], "long.jsonl": ["short"]}.get(name, [])
    assert sorted(found) == sorted(texts(30) + fit)


BROKEN = {
    "cut.jsonl.gz": (gzip.compress(json_lines(texts(50)))[:-20], "cut.jsonl.gz is damaged"),
    "not.jsonl.gz": (b"plain", "not.jsonl.gz is damaged"),
    "cut.tar": (tar_of({"1.txt": b"x" * 5000})[:3000], "cut.tar is damaged"),
    "other.tar": (tar_of({"1.jpg": b"x"}), "has no member KEY.txt"),
    "no.parquet": (b"PAR1", "no.parquet is not a parquet file"),
    "cut.jsonl.zst": (b"\x28\xb5\x2f\xfd\x04", "cut.jsonl.zst is damaged"),
    "a.docx": (b"PK", "a.docx is of no known kind"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, capsys, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert run(
        f"inputs={tmp_path}/*", f"out={tmp_path / 'out'}", *BYTE, "on_bad=skip", "processes=1"
    ) in (1, 2)
    assert message in capsys.readouterr().err


def test_parquet_and_zstd(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    documents = texts(80)
    table = pyarrow.table({"id": list(range(40)), "content": documents[:40]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    lines = json_lines(documents[40:], field="content")
    (tmp_path / "b.jsonl.zst").write_bytes(pyarrow.compress(lines, codec="zstd", asbytes=True))
    assert (
        run(
            f"inputs={tmp_path}/*", f"out={tmp_path / 'out'}", *BYTE, "field=content", "processes=1"
        )
        == 0
    )
    assert sorted(
        documents_of(tmp_path / "out", "train") + documents_of(tmp_path / "out", "val")
    ) == sorted(documents)


def test_folders_lines_and_objects_in_tars(tmp_path):
    source = tmp_path / "project"
    (source / ".git").mkdir(parents=True)
    (source / "a.py").write_text("a = 1\n")
    (source / "b.py").write_text("b = 2\n")
    (source / "binary.py").write_bytes(b"\xff\xfe")
    (source / "image.png").write_bytes(b"\x89PNG")
    (source / ".git" / "c.py").write_text("hidden")
    assert run(f"inputs={source}", f"out={tmp_path / 'folder'}", *BYTE) == 0
    assert sorted(
        documents_of(tmp_path / "folder", "train") + documents_of(tmp_path / "folder", "val")
    ) == ["a = 1\n", "b = 2\n"]
    (tmp_path / "lines.txt").write_text("one\ntwo\r\n\nthree")
    assert (
        run(f"inputs={tmp_path}/lines.txt", f"out={tmp_path / 'lines'}", *BYTE, "document=line")
        == 0
    )
    found = documents_of(tmp_path / "lines", "train") + documents_of(tmp_path / "lines", "val")
    assert sorted(found) == ["one", "three", "two"]
    members = {f"{i}.json": json.dumps({"body": f"text {i}"}).encode() for i in range(3)}
    (tmp_path / "objects.tar").write_bytes(tar_of(members))
    assert (
        run(
            f"inputs={tmp_path}/objects.tar",
            f"out={tmp_path / 'tar'}",
            *BYTE,
            "member=json",
            "field=body",
        )
        == 0
    )
    found = documents_of(tmp_path / "tar", "train") + documents_of(tmp_path / "tar", "val")
    assert sorted(found) == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inputs=nothing/*",), "matches nothing"),
        (("inputs=",), "inputs"),
        (("inputs=.", "tokenizer=bep"), "bpe"),
        (("inputs=.", "tokenizer=byte", "vocab_size=300"), "has exactly 257 entries"),
        (("inputs=.", "tokenizer=hf:gpt2", "vocab_size=300"), "has its own"),
        (("inputs=.", "val_path=a", "val_fraction=0.1"), "nothing reads it where val_path says"),
        (("inputs=.", "val_path="), "val_path names nothing"),
    ],
)
def test_wrong_options(tmp_path, capsys, words, message):
    assert run(*words, f"out={tmp_path / 'out'}") == 2
    assert message in capsys.readouterr().err


def test_what_is_held_out_may_be_named(tmp_path):
    documents = texts(20)
    (tmp_path / "a.jsonl").write_bytes(json_lines(documents))
    (tmp_path / "val.jsonl").write_bytes(json_lines(["one held out", "and another"]))
    words = (f"inputs={tmp_path / 'a.jsonl'}", "tokenizer=byte", f"out={tmp_path / 'out'}")
    assert run(*words, f"val_path={tmp_path / 'val.jsonl'}") == 0
    index = CorpusIndex.load(tmp_path / "out")
    counts = {
        split: (sum(s.n_documents for s in shards), sum(s.n_bytes for s in shards))
        for split, shards in index.splits.items()
    }
    assert counts == {
        "train": (20, sum(len(text.encode()) for text in documents)),
        "val": (2, len("one held out") + len("and another")),
    }


def test_one_character_is_too_little(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    recipe = PrepareOptions(inputs=f"{tmp_path}/a.txt", out=str(tmp_path / "out"), tokenizer="byte")
    with pytest.raises(ConfigError, match="1 distinct non-empty document"):
        command.prepare(recipe, silent)
