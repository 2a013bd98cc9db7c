"""Files behind http: the same bytes through every fault that passes, and one message for those that
stay."""

from __future__ import annotations

import io
import random
import time
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.data.io import http
from scaling.data.io.fetch import fetch, open_location, size_bytes
from scaling.data.io.http import HttpFile, Patience
from scaling.errors import DataError
from tests.support.web_server import Web, serving

CONTENT = random.Random(0).randbytes(5000)


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, none of which is made."""
    seconds: list[float] = []
    monkeypatch.setattr(
        http, "time", SimpleNamespace(monotonic=time.monotonic, sleep=seconds.append)
    )
    return seconds


@pytest.fixture
def web(monkeypatch):
    with serving(monkeypatch, files={"/a": CONTENT, "/empty": b""}) as web:
        yield web


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "faults", [[], [500], [503, 429, 408], ["cut"], ["cut", 502, "cut"]], ids=str
)
def test_faults_that_pass_are_overcome(web: Web, waits, faults, ranges):
    web.ranges, web.faults["/a"] = ranges, list(faults)
    assert fetch(f"{web.url}/a") == CONTENT
    assert len(waits) == len(faults)


def test_what_has_come_is_not_asked_for_again(web: Web, waits):
    web.faults["/a"] = ["cut", 500]
    assert fetch(f"{web.url}/a") == CONTENT
    assert web.gets("/a") == ["bytes=0-", "bytes=2500-", "bytes=2500-"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 900)), max_size=8), st.booleans())
def test_it_reads_as_a_file_does(web: Web, places, ranges):
    web.ranges = ranges
    with open_location(f"{web.url}/a") as file:
        like = io.BytesIO(CONTENT)
        assert file.seekable() == ranges
        for place, length in places if ranges else ():
            assert (file.seek(place), file.read(length)) == (like.seek(place), like.read(length))
        if ranges:
            assert (file.seek(-10, io.SEEK_END), file.read()) == (4990, CONTENT[-10:])
        else:
            assert file.read() == CONTENT


def test_sizes(web: Web):
    assert size_bytes(f"{web.url}/a") == HttpFile(f"{web.url}/a").size == 5000
    assert fetch(f"{web.url}/empty") == b""
    assert fetch(f"{web.url}/a", max_bytes=10) == CONTENT[:10]
    assert HttpFile(f"{web.url}/empty").size == 0


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, "HTTP 404 Not Found"), (403, "HTTP 403 Forbidden"), (400, "HTTP 400")],
)
def test_what_the_server_calls_wrong_is_not_asked_again(web: Web, waits, status, reason):
    web.faults["/a"] = [status]
    with pytest.raises(DataError, match=f"{web.url}/a cannot be read: {reason}"):
        fetch(f"{web.url}/a")
    assert waits == []


def test_patience_ends_with_the_last_cause_and_the_number_of_attempts(web: Web, monkeypatch):
    web.faults["/a"] = [500] * 1000
    monkeypatch.setattr(http, "_FIRST_DELAY_S", 0.01)
    begun_s = time.monotonic()
    with pytest.raises(
        DataError, match=r"HTTP 500 Internal Server Error \(the last of \d+ attempts in \d+ s\)"
    ):
        fetch(f"{web.url}/a", patience=Patience(give_up_s=0.3))
    assert 0.25 < time.monotonic() - begun_s < 3


def test_waits_grow_and_are_bounded(web: Web, waits):
    web.faults["/a"] = [500] * 9
    assert fetch(f"{web.url}/a", patience=Patience(give_up_s=1000)) == CONTENT
    for number, wait in enumerate(waits):
        whole = min(30.0, 0.5 * 2**number)
        assert whole / 2 <= wait <= whole


def test_a_server_that_is_silent_is_asked_again(web: Web, waits):
    web.faults["/a"] = [0.5]
    assert fetch(f"{web.url}/a", patience=Patience(timeout_s=0.1)) == CONTENT
    assert len(waits) == 1


def test_a_server_that_trickles_is_given_up(web: Web):
    web.faults["/a"] = [0.05] * 10
    with pytest.raises(DataError, match=r"only \d+ bytes came in"):
        fetch(f"{web.url}/a", patience=Patience(give_up_s=0.3))


def test_a_file_that_changes_is_not_patched_together(web: Web, waits):
    web.faults["/a"] = ["cut"]
    with open_location(f"{web.url}/a") as file:
        assert file.read(100) == CONTENT[:100]
        web.files["/a"] = CONTENT[::-1]
        with pytest.raises(DataError, match="changed while it was read"):
            file.read()


def test_an_unknown_host_is_told_at_once(waits, monkeypatch):
    def resolve(*_: object, **__: object) -> None:
        raise http.socket.gaierror(http.socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(http.socket, "getaddrinfo", resolve)
    with pytest.raises(
        DataError, match=r"http://nowhere.invalid/a cannot be read: Name or service not known"
    ):
        fetch("http://nowhere.invalid/a")
    assert waits == []
