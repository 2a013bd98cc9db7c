"""metrics.jsonl: exact, append-only, and without a repeated step after any crash."""

import json
import math
import re
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import RunDirError
from scaling.metrics.record import MetricLog, read_metrics

floats = st.floats(allow_nan=True, allow_infinity=True)


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


def write_steps(path: Path, steps: range) -> MetricLog:
    log = MetricLog(path)
    for step in steps:
        log.record(step, 100 * step, 1e9 * step, 0.5 * step, {"train/loss": 10 / step})
    return log


@given(loss=floats, lr=floats, flops=st.floats(0, 1e30), n_tokens=st.integers(0, 10**15))
def test_every_number_reads_back_exactly(tmp_path_factory, loss, lr, flops, n_tokens):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    MetricLog(path).record(7, n_tokens, flops, 1.5, {"train/loss": loss, "train/lr": lr})
    (record,) = read_metrics(path)
    assert list(record) == ["step", "n_tokens", "flops", "wall_s", "train/loss", "train/lr"]
    assert (record["step"], record["n_tokens"], record["wall_s"]) == (7, n_tokens, 1.5)
    assert [bits(record[k]) for k in ("train/loss", "train/lr", "flops")] == [
        bits(loss),
        bits(lr),
        bits(flops),
    ]


def test_the_file_is_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"train/loss": math.nan, "train/lr": math.inf, "train/grad_norm": -math.inf}
    MetricLog(path).record(1, 2, 3.0, 4.0, values)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert [found[name] for name in values] == ["NaN", "Infinity", "-Infinity"]


def test_numpy_scalars_become_plain_numbers(tmp_path):
    import numpy as np

    path = tmp_path / "metrics.jsonl"
    MetricLog(path).record(1, 2, 3.0, 4.0, {"train/loss": np.float32(0.1), "train/tokens": 5})
    assert read_metrics(path)[0]["train/loss"] == float(np.float32(0.1))
    assert '"train/tokens":5,' in path.read_text()


@pytest.mark.parametrize("step", [None, 0, 3, 9, 50])
def test_resume_drops_what_lies_after_the_checkpoint(tmp_path, step):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 10))
    kept = [n for n in range(1, 10) if step is not None and n <= step]
    log = MetricLog(path)
    assert log.resume(step) == (0.5 * kept[-1] if kept else 0.0)
    assert [record["step"] for record in read_metrics(path)] == kept
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resumed_log_equals_an_unbroken_one(tmp_path):
    unbroken, broken = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_steps(unbroken, range(1, 10))
    write_steps(broken, range(1, 8))
    with broken.open("a") as file:
        file.write('{"step": 8, "n_tok')
    log = MetricLog(broken)
    log.resume(5)
    for step in range(6, 10):
        log.record(step, 100 * step, 1e9 * step, 0.5 * step, {"train/loss": 10 / step})
    assert broken.read_bytes() == unbroken.read_bytes()


@given(cut=st.integers(0, 10_000))
def test_any_cut_is_read_and_resumed(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    write_steps(path, range(1, 6))
    whole = read_metrics(path)
    content = path.read_bytes()[: cut % (path.stat().st_size + 1)]
    path.write_bytes(content)
    n_lines = content.count(b"\n") + (content[-1:] == b"}")
    assert read_metrics(path) == whole[:n_lines]
    MetricLog(path).resume(100)
    assert path.read_bytes() == b"".join(line + b"\n" for line in content.split(b"\n")[:n_lines])


def test_an_append_after_a_torn_end_does_not_join_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 3))
    with path.open("a") as file:
        file.write('{"step": 3, "n_')
    MetricLog(path).record(4, 1, 1.0, 1.0, {})
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 4]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{broken", "Expecting"),
        ('{"step":2}', "n_tokens is missing"),
        ("[2]", "not an object"),
        ("", "Expecting"),
    ],
)
def test_damage_before_the_end_names_the_line(tmp_path, line, complaint):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join(lines) + "\n")
    for read in (lambda: read_metrics(path), lambda: MetricLog(path).resume(3)):
        with pytest.raises(
            RunDirError, match=f"line 2 of .*metrics.jsonl is damaged: .*({complaint})"
        ):
            read()
    assert path.read_text() == "\n".join(lines) + "\n"


def test_a_value_that_is_no_number_is_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,"n_tokens":1,"flops":1.0,"wall_s":1.0,"train/loss":"two"}\n')
    with pytest.raises(RunDirError, match="train/loss is 'two', not a number"):
        read_metrics(path)


def test_a_missing_file_is_an_error_to_read_and_a_start_to_resume(tmp_path):
    with pytest.raises(RunDirError, match=r"cannot read .*ENOENT"):
        read_metrics(tmp_path / "metrics.jsonl")
    assert MetricLog(tmp_path / "metrics.jsonl").resume(0) == 0.0


def test_no_step_and_kind_repeats(tmp_path):
    log = write_steps(tmp_path / "metrics.jsonl", range(1, 4))
    log.record(3, 300, 3e9, 1.6, {"val/loss": 2.0})
    with pytest.raises(AssertionError, match="second val record of step 3"):
        log.record(3, 300, 3e9, 1.7, {"val/loss": 2.0})
    with pytest.raises(AssertionError, match="step 2 recorded after step 3"):
        log.record(2, 200, 2e9, 1.7, {"train/loss": 2.0})
    log = MetricLog(log.path)
    log.resume(3)
    with pytest.raises(AssertionError, match="second train record of step 3"):
        log.record(3, 300, 3e9, 1.6, {"train/loss": 2.0})


class Listener:
    def __init__(self, trouble: Exception | None = None) -> None:
        self.records, self.closed, self.trouble = [], False, trouble

    def log(self, record):
        self.records.append(record)

    def close(self):
        self.closed = True
        if self.trouble:
            raise self.trouble


def test_sinks_see_what_was_written_and_all_are_closed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sinks = [Listener(OSError("gone")), Listener()]
    log = MetricLog(path, sinks)
    log.record(1, 2, 3.0, 4.0, {"train/loss": 5.0})
    assert sinks[0].records == sinks[1].records == read_metrics(path)
    with pytest.raises(OSError, match="gone"):
        log.close()
    assert sinks[1].closed
    log.close()


def peak_bytes(act) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_record_passes_through_a_little_memory(tmp_path):
    """A million records took 4 GB; here each of 10 000 would take 500 bytes, and 5 MB together."""
    path = tmp_path / "metrics.jsonl"
    lines = (
        f'{{"step":{n},"n_tokens":{n},"flops":1.0,"wall_s":1.0,"train/loss":1.0}}\n'
        for n in range(1, 10_001)
    )
    path.write_text("".join(lines))
    log = MetricLog(path)
    assert peak_bytes(lambda: log.resume(9_000)) < 1e6
    assert peak_bytes(lambda: log.resume(9_000)) < 1e6
    assert peak_bytes(log.last_step) < 1e6
    assert log.last_step() == 9_000
    with path.open("a") as file:
        file.write('{"step": 9001, "n_tok')
    values = {"train/loss": 1.0}
    assert peak_bytes(lambda: log.record(9_001, 1, 1.0, 1.0, values)) < 1e6
    assert [record["step"] for record in read_metrics(path)] == list(range(1, 9_002))


def test_the_names_that_are_wanted_are_all_that_is_held(tmp_path):
    write_steps(tmp_path / "metrics.jsonl", range(1, 3))
    found = read_metrics(tmp_path / "metrics.jsonl", only=("step", "train/loss", "val/loss"))
    assert found == [{"step": 1, "train/loss": 10.0}, {"step": 2, "train/loss": 5.0}]


def test_a_last_line_longer_than_a_block_is_read_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    log.record(1, 1, 1.0, 1.0, {"train/loss": 1.0})
    log.record(2, 1, 1.0, 1.0, {"eval/" + "x" * 200_000: 1.0})
    path.write_bytes(path.read_bytes()[:-1])
    assert MetricLog(path).last_step() == 2
    MetricLog(path).record(3, 1, 1.0, 1.0, {"train/loss": 1.0})
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]


def test_a_line_cut_out_of_the_middle_is_a_gap_and_the_numbers_go_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 10))
    lines = path.read_bytes().splitlines(keepends=True)
    log = MetricLog(path)
    for _ in range(2):  # at each resumption again: the file keeps the gap
        path.write_bytes(b"".join([lines[0], *lines[3:5], *lines[6:]]))
        log.resume(8)
        assert log.gaps == [(1, 4), (5, 7)]
    log.record(9, 900, 9e9, 4.5, {"train/loss": 10 / 9})
    assert path.read_bytes().splitlines(keepends=True)[-1] == lines[-1]
    log.resume(3)
    assert log.gaps == []


def test_lines_without_numbers_are_those_of_an_earlier_version(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    path.write_text(re.sub(r',"line":\d+', "", path.read_text()))
    log = MetricLog(path)
    log.resume(3)
    assert log.gaps == []
    log.record(4, 400, 4e9, 2.0, {"train/loss": 2.5})
    assert '"line":4}' in path.read_text()
    assert "line" not in read_metrics(path)[-1]
