"""What inputs name is read, whatever it is called and however it is linked; what is not read is
counted and named."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd

from scaling import prepare
from scaling.config.paths import matching, oddity, split_paths
from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.io.fetch import local_path
from scaling.data.io.hub import _is_data
from scaling.data.prepare.inputs import find_pieces
from scaling.data.prepare.options import PrepareOptions
from scaling.data.prepare.pieces import Reading, read_piece
from scaling.data.prepare.recipe import directory_name, inputs_of
from scaling.data.prepare.sources import UnfitText, find_source, read_pairs
from scaling.errors import ConfigError, DataError
from scaling.laws.options import FitOptions
from scaling.rehearsal.options import DrillOptions
from tests.support.prepare_inputs import json_lines, tar_of, texts

MARK = codecs.BOM_UTF8
DOCUMENTS = texts(6)


def read(
    *inputs: str, field: str = "text", member: str = "txt", **options
) -> tuple[list[str], list[str]]:
    """The documents, sorted, and what was reported. What is unfit is raised."""
    told: list[str] = []
    pieces = find_pieces(inputs, report=lambda message, part: told.append(message), **options)
    found = [text for piece in pieces for text in read_piece(piece, Reading(field, member))]
    for text in found:
        if isinstance(text, UnfitText):
            raise text
    return sorted(found), told


def table(documents: list[str], path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": documents}), path)


# Byte order marks


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.jsonl", MARK + json_lines(DOCUMENTS), {}),
        ("joined.jsonl", MARK + json_lines(DOCUMENTS[:3]) + MARK + json_lines(DOCUMENTS[3:]), {}),
        ("a.jsonl.gz", gzip.compress(MARK + json_lines(DOCUMENTS), mtime=0), {}),
        ("a.JSONL.ZST", zstd.compress(MARK + json_lines(DOCUMENTS)), {}),
        (
            "a.tar",
            tar_of({f"{i}.txt": MARK + text.encode() for i, text in enumerate(DOCUMENTS)}),
            {},
        ),
        (
            "b.tar",
            tar_of({f"{i}.json": MARK + json_lines([text]) for i, text in enumerate(DOCUMENTS)}),
            {"member": "json"},
        ),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, content, options):
    (tmp_path / name).write_bytes(content)
    assert read(str(tmp_path / name), **options)[0] == sorted(DOCUMENTS)


@pytest.mark.parametrize("by_line", [False, True])
def test_a_mark_begins_a_file_and_is_text_elsewhere(tmp_path, by_line):
    (tmp_path / "a.txt").write_bytes(MARK + b"one\n\xef\xbb\xbftwo\n")
    expected = ["one", "\ufefftwo"] if by_line else ["one\n\ufefftwo\n"]
    assert read(str(tmp_path / "a.txt"), by_line=by_line)[0] == expected


def test_a_mark_before_pairs_is_no_text(tmp_path):
    (tmp_path / "a.tsv").write_bytes(MARK + b"one\teins\n")
    source = find_source(
        DataConfig(kind="text_pairs", path=str(tmp_path / "a.tsv"), cache_dir="unused")
    )
    assert [text for _, text in read_pairs(source)] == ["one\x1eeins"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_other_encodings_are_named_by_their_mark(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(json_lines(["text"]).decode().encode(encoding))
    with pytest.raises(
        DataError, match=rf"{name} is not UTF-8 (.|\n)*iconv -f {encoding.upper()} "
    ):
        read(str(tmp_path / name))


# Links, folders and what is left out


def test_what_a_pattern_names_and_is_no_file_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to("gone")
    with pytest.raises(DataError, match=r"b\.txt is a link to nothing \(gone\)"):
        read(f"{tmp_path}/*.txt")
    with pytest.raises(DataError, match="link to nothing"):
        find_source(DataConfig(kind="text_files", path=f"{tmp_path}/*.txt", cache_dir="unused"))
    (tmp_path / "b.txt").unlink()
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(DataError, match=r"b\.txt is a pipe"):
        read(f"{tmp_path}/*.txt")
    assert oddity(tmp_path) is oddity(tmp_path / "a.txt") is None


def test_links_in_folders_are_followed_and_circles_end(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    (blobs / "more").mkdir(parents=True)
    (snapshot / "deep").mkdir(parents=True)
    for i, text in enumerate(DOCUMENTS[:3]):
        (blobs / f"blob{i}").write_text(text)
        (snapshot / f"f{i}.txt").symlink_to(f"../blobs/blob{i}")
    (blobs / "more" / "g.md").write_text(DOCUMENTS[3])
    (snapshot / "linked").symlink_to(blobs / "more")
    (snapshot / "deep" / "circle").symlink_to(snapshot)
    (snapshot / "deep" / "h.TXT").write_text(DOCUMENTS[4])
    assert read(str(snapshot)) == (sorted(DOCUMENTS[:5]), [])
    assert read(f"{snapshot}/**") == (sorted(DOCUMENTS[:5]), [])


def test_all_that_a_folder_holds_is_read_or_named(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".hid.txt").write_text("h")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    for name in ("b.jsonl", "c.jsonl.gz", "d.jsonl", "README", "sub/e.PNG"):
        (tmp_path / name).write_bytes(b"x")
    found, told = read(str(tmp_path))
    assert found == ["a"]
    assert sorted(told) == [
        f"left out 1 hidden file: {tmp_path / '.hid.txt'}",
        f"left out 1 link to nothing or special file: {tmp_path / 'gone.txt'}",
        "left out 2 folders, hidden or of caches: .git, __pycache__",
        "left out 5 files of other endings: .jsonl (2), no ending, .jsonl.gz, .png",
    ]


@pytest.mark.parametrize("pattern", ["*", "*.txt", "**", "**/*.txt"])
def test_what_a_pattern_passes_over_is_named(tmp_path, pattern):
    for name in ("a.txt", ".hid.txt", ".git/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found, told = read(f"{tmp_path}/{pattern}")
    assert found == ["a.txt"]
    assert f"left out 1 hidden file: {tmp_path / '.hid.txt'}" in told
    assert read(f"{tmp_path}/.hid.txt") == ([".hid.txt"], [])
    assert read(f"{tmp_path}/.h*") == ([".hid.txt"], [])


def test_a_folder_of_other_files_says_which(tmp_path):
    (tmp_path / "a.log").write_bytes(json_lines(DOCUMENTS))
    with pytest.raises(
        ConfigError, match=r"left out 1 file of another ending: \.log (.|\n)*suffixes=\.jsonl"
    ):
        read(str(tmp_path))


@pytest.mark.parametrize("suffixes", [(".jsonl",), ("jsonl",), (".JSONL",), ("*.jsonl",)])
def test_suffixes_choose_files_that_are_read_as_what_they_are(tmp_path, suffixes):
    (tmp_path / "a.jsonl").write_bytes(json_lines(DOCUMENTS[:3]))
    (tmp_path / "b.JSONL").write_bytes(json_lines(DOCUMENTS[3:]))
    (tmp_path / "c.txt").write_text("left out")
    found, told = read(str(tmp_path), suffixes=suffixes)
    assert found == sorted(DOCUMENTS)
    assert told == ["left out 1 file of another ending: .txt"]


def test_suffixes_may_be_of_compressed_files_and_unknown(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "b.log").write_text("two")
    table(["three"], tmp_path / "c.parquet")
    assert read(str(tmp_path), suffixes=("txt.gz", "log", ".parquet"))[0] == ["one", "three", "two"]


def test_lines_of_texts_in_a_folder_are_documents_where_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.log").write_bytes(b"three\n\xff\n")
    (tmp_path / "c.md").touch()
    pieces = find_pieces([str(tmp_path)], by_line=True, suffixes=("txt", "log", "md"))
    found = [text for piece in pieces for text in read_piece(piece, Reading())]
    assert [text for text in found if isinstance(text, str)] == ["one", "two", "three"]
    assert all(piece.lenient for piece in pieces), "such trees hold other files than texts"
    assert len(found) == 4


@pytest.mark.parametrize("place", ["", "*.txt", "{a,b,c}.txt"])
def test_the_first_files_of_each_input_are_read(tmp_path, place):
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(name)
    inputs = (
        [f"{tmp_path}/{name}.txt" for name in "abc"] if "{" in place else [f"{tmp_path}/{place}"]
    )
    found, told = read(*inputs, max_files=2)
    if len(inputs) == 3:
        assert (found, told) == (["a", "b", "c"], [])
    else:
        assert found == ["a", "b"]
        assert told == [f"left out 1 file beyond max_files: {tmp_path / 'c.txt'}"]
        assert read(*inputs, f"{tmp_path}/c.txt", max_files=2) == (["a", "b", "c"], [])


def test_a_corpus_of_the_first_files_is_another_one(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    data = DataConfig(kind="documents", path=f"{tmp_path}/*.txt", cache_dir="unused")
    first = data.model_copy(update={"max_files": 1})
    tokenizer = TokenizerConfig(kind="byte", vocab_size=257)
    before = directory_name(first, tokenizer, None)
    (tmp_path / "b.txt").write_text("changed, and not read")
    assert directory_name(first, tokenizer, None) == before
    (tmp_path / "a.txt").write_text("changed, and read")
    assert directory_name(first, tokenizer, None) != before


@pytest.fixture
def closed(tmp_path, monkeypatch) -> Path:
    """A folder that cannot be listed, also not by root."""
    folder = tmp_path / "open" / "closed"
    folder.mkdir(parents=True)
    (folder / "b.txt").write_text("b")
    (folder.parent / "a.txt").write_text("a")
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return folder


def test_an_unreadable_folder_is_an_error(tmp_path, closed):
    with pytest.raises(DataError, match="closed cannot be read: Permission denied"):
        read(str(tmp_path))
    with pytest.raises(DataError, match="closed cannot be read: Permission denied"):
        find_source(DataConfig(kind="text_files", path=str(tmp_path), cache_dir="unused"))


@pytest.mark.parametrize("pattern", ["**", "**/*.txt", "open/**/*.txt"])
def test_an_unreadable_folder_under_a_pattern_is_named(tmp_path, closed, pattern):
    assert read(f"{tmp_path}/{pattern}") == (
        ["a"],
        [f"left out 1 folder that cannot be listed: {closed}"],
    )
    data = DataConfig(kind="text_files", path=f"{tmp_path}/{pattern}", cache_dir="unused")
    with pytest.raises(DataError, match="closed cannot be listed"):
        find_source(data)


@pytest.mark.parametrize("pattern", ["*/*/b.txt", "open/closed/*", "open/c*/*.txt"])
def test_a_pattern_that_finds_nothing_names_the_folder_it_cannot_list(tmp_path, closed, pattern):
    if pattern != "*/*/b.txt":  # this name needs no list
        with pytest.raises(DataError, match=f"matches nothing, and {closed} cannot be listed"):
            read(f"{tmp_path}/{pattern}")
    else:
        assert read(f"{tmp_path}/{pattern}")[0] == ["b"]


def test_all_links_under_a_folder_of_texts_are_followed_or_refused(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "elsewhere")
    data = DataConfig(kind="text_files", path=str(tmp_path / "texts"), cache_dir="unused")
    assert find_source(data).files == (tmp_path / "texts" / "linked" / "a.txt",)
    (tmp_path / "texts" / "b.txt").symlink_to("gone")
    with pytest.raises(DataError, match=r"b\.txt is a link to nothing \(gone\)"):
        find_source(data)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.tar", "a.parquet"])
def test_empty_files_are_named(tmp_path, name):
    (tmp_path / name).touch()
    if name == "a.parquet":
        pyarrow.parquet.write_table(
            pyarrow.table({"text": pyarrow.array([], "string")}), tmp_path / name
        )
    with pytest.raises(
        ConfigError, match=rf"nothing to read; left out 1 file that is empty: .*{name}"
    ):
        read(str(tmp_path / name))
    (tmp_path / "b.txt").write_text("b")
    assert read(f"{tmp_path}/*") == (["b"], [f"left out 1 file that is empty: {tmp_path / name}"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.txt.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl", b"\n \n\n"),
        ("a.txt", MARK),
        ("a.jsonl", b'{"text": ""}\n'),
    ],
)
def test_files_that_turn_out_to_be_empty_are_named(tmp_path, capsys, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    words = ["out=" + str(tmp_path / "out"), "tokenizer=byte", "processes=1"]
    assert prepare.main([f"inputs={path}", *words]) == 2
    assert f"no text to read; left out 1 file that is empty: {path}" in capsys.readouterr().err
    (tmp_path / "b.txt").write_text("some text of a file beside it\n" * 20)
    assert prepare.main([f"inputs={path},{tmp_path}/b.txt", *words]) == 0
    said = capsys.readouterr()
    assert f"left out 1 file that is empty: {path}" in " ".join((said.out + said.err).split())


# Names


@pytest.mark.parametrize("folder", ["d [1], x", "a,b", "x[12]", "{1,2}", "what?", "[ab]"])
def test_a_pattern_may_stand_in_a_folder_of_any_name(tmp_path, monkeypatch, folder):
    place = tmp_path / folder / "sub, [z]"
    place.mkdir(parents=True)
    (place / "1.jsonl").write_bytes(json_lines(DOCUMENTS[:3]))
    (tmp_path / "other.jsonl").write_bytes(json_lines(DOCUMENTS[3:]))
    monkeypatch.chdir(tmp_path)
    for text in (f"{tmp_path}/{folder}/*/*.jsonl", f"{folder}/sub, [z]/?.jsonl", f"{folder}/**"):
        assert split_paths(f"{text},other.jsonl") == (text, "other.jsonl")
        assert split_paths(f"other.jsonl,{text}") == ("other.jsonl", text)
        assert matching(text) == [str(place / "1.jsonl")]
        assert read(*split_paths(f"{text},other.jsonl"))[0] == sorted(DOCUMENTS)


def test_lists_may_stand_in_brackets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_paths("[a, 'b', x/*.txt]") == ("a", "b", "x/*.txt")
    assert split_paths("[ab]*.txt,[c]") == ("[ab]*.txt", "[c]")
    (tmp_path / "a").touch()
    assert split_paths("[ab]") == ("[ab]",), "a pattern that matches"
    (tmp_path / "[a,b]").touch()
    assert split_paths("[a,b]") == ("[a,b]",), "a path that exists"
    read_words = PrepareOptions.model_validate(
        {"inputs": "[c,d]", "out": "o", "suffixes": "[jsonl, TXT,'*.md']"}, context="words"
    )
    assert read_words.inputs == ("c", "d")
    assert read_words.suffixes == ("jsonl", "TXT", "*.md")
    words = {"table": "t.csv", "same": "[a, b]", "where": "[x:1,y:2]"}
    law = FitOptions.model_validate(words, context="words")
    assert (law.same, law.where) == (("a", "b"), (("x", "1"), ("y", "2")))
    assert DrillOptions(victims="[driver, worker]").kinds == {"driver", "worker"}


# Whole names


@pytest.mark.parametrize(
    "name",
    [
        "weird [x] a.jsonl",
        "with,comma.jsonl",
        "*.jsonl",
        "{1,2}.jsonl",
        "a%20b#c?.jsonl",
        "hf:x.jsonl",
    ],
)
def test_a_path_comes_before_a_pattern(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(json_lines(DOCUMENTS[:3]))
    (tmp_path / "other.jsonl").write_bytes(json_lines(DOCUMENTS[3:]))
    monkeypatch.chdir(tmp_path)
    for text in (name, str(tmp_path / name)):
        assert split_paths(f"other.jsonl,{text},other.jsonl") == (
            "other.jsonl",
            text,
            "other.jsonl",
        )
        assert inputs_of(DataConfig(kind="documents", path=text, cache_dir="unused")) == (text,)
        assert read(text)[0] == sorted(DOCUMENTS[:3])
        assert find_source(DataConfig(kind="text_files", path=text, cache_dir="unused")).files == (
            tmp_path / name,
        )
        assert Path(local_path(text)).absolute() == tmp_path / name


@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "file:{}", "FILE://{}"])
def test_file_urls_are_paths(tmp_path, form):
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "c#1.jsonl").write_bytes(json_lines(DOCUMENTS))
    for end in ("c%231.jsonl", "c?1.jsonl", "*.jsonl"):
        assert read(form.format(str(folder).replace(" ", "%20")) + f"/{end}")[0] == sorted(
            DOCUMENTS
        )


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a,b.txt").write_text("a")
    assert split_paths("~/a,b.txt,c") == ("~/a,b.txt", "c")
    assert matching("~/a,b.txt") == matching("~/*.txt") == [str(tmp_path / "a,b.txt")]
    assert local_path("~/a,b.txt") == tmp_path / "a,b.txt"


def test_endings_may_be_in_either_case(tmp_path):
    (tmp_path / "a.JSONL.GZ").write_bytes(gzip.compress(json_lines(DOCUMENTS[:1])))
    (tmp_path / "b.Json.Zst").write_bytes(zstd.compress(json_lines(DOCUMENTS[1:2])))
    (tmp_path / "c.TAR").write_bytes(tar_of({"1.txt": DOCUMENTS[2].encode()}))
    (tmp_path / "d.TGZ").write_bytes(gzip.compress(tar_of({"1.txt": DOCUMENTS[3].encode()})))
    (tmp_path / "e.TXT.ZSTD").write_bytes(zstd.compress(DOCUMENTS[4].encode()))
    table(DOCUMENTS[5:], tmp_path / "f.PARQUET")
    assert read(f"{tmp_path}/*")[0] == sorted(DOCUMENTS)
    assert _is_data("data/A.PARQUET")
    assert _is_data("data/A.JSONL.GZ")


# Compression


@pytest.mark.parametrize(("window_log", "place"), [(27, 1), (28, 0), (31, 1)])
def test_long_windows_of_zstd_are_read_in_every_frame(tmp_path, window_log, place):
    options = {
        zstd.CompressionParameter.window_log: window_log,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(json_lines(DOCUMENTS[:3])) + compressor.flush()
    frames = [zstd.compress(json_lines(DOCUMENTS[3:]))]
    frames.insert(place, frame)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(frames))
    assert read(str(path))[0] == sorted(DOCUMENTS)
    path.write_bytes(b"".join(frames)[:-6])
    with pytest.raises(DataError, match="is damaged"):
        read(str(path))


def test_what_is_no_frame_of_zstd_is_damage(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd.compress(json_lines(DOCUMENTS)) + b"no frame")
    with pytest.raises(DataError, match="is damaged"):
        read(str(path))


# Values that are no text, and commands that come to nothing


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "null"),
        (["a"], "an array"),
        ({"a": 1}, "an object"),
        (3, "a number"),
        (True, "a boolean"),
    ],
)
def test_values_that_are_no_text_are_named(tmp_path, value, what):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": value}))
    with pytest.raises(
        DataError, match=rf"has {what} in 'text', and no text(.|\n)*on_bad=skip"
    ) as raised:
        read(str(tmp_path / "a.jsonl"))
    assert "field=" not in str(raised.value)


def test_a_line_that_is_no_object_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('[{"text": "a"}]')
    with pytest.raises(DataError, match="is an array, not an object"):
        read(str(tmp_path / "a.jsonl"))


def test_columns_of_tables_are_texts_or_bytes_of_texts(tmp_path):
    columns = {
        "text": pyarrow.array(["a", None]),
        "bytes": pyarrow.array([b"a", b"b"]),
        "words": pyarrow.array(["a", "b"]).dictionary_encode(),
        "list": [["a"], ["b"]],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    assert read(path, field="bytes")[0] == read(path, field="words")[0] == ["a", "b"]
    with pytest.raises(DataError, match="has null in 'text', and no text"):
        read(path)
    with pytest.raises(
        DataError,
        match=r"has list<.*> in column 'list', and no text(.|\n)*are: text, bytes, words;",
    ):
        read(path, field="list")


@pytest.mark.parametrize(
    "wrong",
    ["field=content", "max_document=10", "tokenizer=bpe", "member=json"],
    ids=lambda word: word[:5],
)
def test_a_command_that_comes_to_nothing_leaves_the_directory_to_another(tmp_path, capsys, wrong):
    (tmp_path / "a.jsonl").write_bytes(json_lines(DOCUMENTS[:1]))
    (tmp_path / "b.jsonl").write_bytes(json_lines(DOCUMENTS))
    (tmp_path / "c.tar").write_bytes(tar_of({"1.txt": b"one"}))
    right = {
        "inputs": f"{tmp_path}/*",
        "out": str(tmp_path / "out"),
        "tokenizer": "byte",
        "processes": "1",
    }
    key, _, value = wrong.partition("=")
    assert prepare.main([f"{name}={text}" for name, text in (right | {key: value}).items()]) in (
        1,
        2,
    )
    assert not (tmp_path / "out" / ".work").exists()
    assert (
        prepare.main(
            [f"{name}={text}" for name, text in right.items() if name != "inputs"]
            + [f"inputs={tmp_path}/[abc]*"]
        )
        == 0
    )
    assert "7 documents" in capsys.readouterr().err
