"""The run directory: identity, one driver, atomic files, and errors that say what to do."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scaling.composition.compose import compose
from scaling.errors import ConfigError, RunDirError
from scaling.redaction import HIDDEN, is_secret_name, redact_command
from scaling.runs import files
from scaling.runs.directory import RunDir
from scaling.runs.provenance import git_state


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    return RunDir(tmp_path / "run").create()


def test_the_directory_is_named_by_run_and_identity(tmp_path, monkeypatch):
    config = compose([f"run.root={tmp_path}"])
    assert RunDir.for_config(config).path == tmp_path / f"gpt_nano-{config.run_id}"
    assert (
        RunDir.for_config(compose(["run.root=a", "run.name=x"])).path
        == Path.cwd() / "a" / f"x-{config.run_id}"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDir.for_config(compose(["run.root='~/b'"])).path.parent == tmp_path / "b"


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("run.root=s3://bucket/x", "is a URL"),
        ("run.root=''", "is empty"),
        ("run.name=a/b", "'a/b' cannot"),
        ("run.name=..", "'..'"),
    ],
)
def test_what_makes_no_directory_here_is_refused(override, what):
    with pytest.raises(ConfigError, match=what) as caught:
        RunDir.for_config(compose([override]))
    assert caught.value.fix
    assert caught.value.exit_code == 2


HOLDER = """
import sys, time
from scaling.runs.directory import RunDir
with RunDir(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_until_the_first_is_dead(run_dir):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_dir.path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            assert run_dir.is_driven()
            assert run_dir.owner()["pid"] == holder.pid
            with (
                pytest.raises(
                    RunDirError, match=f"in use by another driver: pid {holder.pid} on .* since 20"
                ) as caught,
                run_dir.lock(),
            ):
                pass
            assert f"kill {holder.pid}" in str(caught.value)
        finally:
            holder.send_signal(signal.SIGKILL)
    assert run_dir.owner()["pid"] == holder.pid
    assert run_dir.is_driven() is False
    with run_dir.lock():
        assert run_dir.owner()["pid"] == os.getpid()
        assert run_dir.is_driven()
    assert run_dir.owner() is None
    assert run_dir.is_driven() is False


def test_probing_the_lock_never_keeps_a_driver_out(run_dir):
    with run_dir.lock():
        pass
    done = threading.Event()

    def probe():
        while not done.is_set():
            run_dir.is_driven()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        for _ in range(100):
            with run_dir.lock():
                assert run_dir.owner()["pid"] == os.getpid()
    finally:
        done.set()
        thread.join()


def test_a_torn_owner_is_nobody(run_dir):
    (run_dir.path / "driver.lock").write_text('{"host": "a", "pi')
    assert run_dir.owner() is None


def test_the_configuration_is_written_once_and_checked(run_dir):
    config = compose(["optim.lr=0.1e-4"])
    run_dir.write_config(config)
    text = (run_dir.path / "config.yaml").read_text()
    assert run_dir.read_config() == config
    run_dir.write_config(
        compose(["optim.lr=0.1e-4", "checkpoint.every_steps=7", "cluster=8xA100", "precision=fp32"])
    )
    assert (run_dir.path / "config.yaml").read_text() == text
    with pytest.raises(
        RunDirError, match=r"holds another run: optim.lr was 1e-05 and is 0.002 now"
    ):
        run_dir.write_config(compose(["optim.lr=2e-3"]))
    (run_dir.path / "config.yaml").write_text("model: {")
    with pytest.raises(RunDirError, match="is no configuration of this version"):
        run_dir.write_config(config)


def test_small_files_come_back(run_dir):
    assert run_dir.read_plan() is None
    assert run_dir.read_summary() is None
    run_dir.write_plan({"n_steps": 3})
    run_dir.write_summary({"loss": 0.1})
    assert run_dir.read_plan() == {"n_steps": 3}
    assert run_dir.read_summary() == {"loss": 0.1}
    (run_dir.path / "summary.json").write_text("[1]")
    with pytest.raises(RunDirError, match=r"summary.json is damaged"):
        run_dir.read_summary()


def test_events_give_the_state(run_dir):
    run_dir.event("shard_skipped", shard="train-000001.tar")
    assert run_dir.state() == RunDir(run_dir.path / "absent").state() == "new"
    states = []
    for kind in (
        "start",
        "checkpoint_committed",
        "preempted",
        "resume",
        "failed",
        "resume",
        "finished",
        "checkpoint_committed",
    ):
        run_dir.event(kind, step=5, world_size=2)
        states.append(run_dir.state())
    assert states == [
        "begun",
        "begun",
        "preempted",
        "begun",
        "failed",
        "begun",
        "finished",
        "finished",
    ]
    event = run_dir.read_events()[1]
    assert {k: event[k] for k in ("kind", "step", "world_size")} == {
        "kind": "start",
        "step": 5,
        "world_size": 2,
    }
    assert event["time"].endswith("+00:00")
    assert abs(event["time_s"] - os.path.getmtime(run_dir.events)) < 60
    run_dir.event("resume", reason="spot")
    assert "step" not in run_dir.read_events()[-1]
    with pytest.raises(AssertionError):
        run_dir.event("exploded")


def test_a_torn_event_is_dropped_and_a_damaged_one_named(run_dir):
    run_dir.event("start")
    with run_dir.events.open("a") as file:
        file.write('{"kind": "fin')
    assert [event["kind"] for event in run_dir.read_events()] == ["start"]
    run_dir.event("resume")
    assert [event["kind"] for event in run_dir.read_events()] == ["start", "resume"]
    run_dir.events.write_text("?\n" + run_dir.events.read_text())
    with pytest.raises(RunDirError, match=r"line 1 of .*events.jsonl is damaged"):
        run_dir.read_events()


SOUND = {"kind": "start", "time": "2026", "time_s": 5.0, "step": 0, "workers": "a"}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": ["x"]},
        {"kind": None},
        {"time_s": "5"},
        {"time_s": float("nan")},
        {"step": 2.5},
        {"workers": []},
        {"command_s": "x"},
        {"kind": "account"},
        {"kind": "account", "seconds": [1]},
        {"kind": "account", "seconds": {"productive": "1"}},
        {"kind": "rolled_back"},
        {"kind": "rolled_back", "sequences": [1]},
        {"kind": "branched", "wall_s": "1"},
        {"kind": "record_gap", "first_step": 1},
    ],
)
def test_an_event_that_nothing_can_be_computed_from_is_set_aside(run_dir, change):
    run_dir.events.write_text(
        "".join(json.dumps(line) + "\n" for line in (SOUND, SOUND | change, SOUND))
    )
    content = run_dir.events.read_bytes()
    with pytest.raises(RunDirError, match="line 2"):
        run_dir.read_events()
    (text,) = run_dir.mend()
    assert "1 of 3 lines are no events" in text
    assert (run_dir.path / "events.jsonl.damaged").read_bytes() == content
    assert [event["kind"] for event in run_dir.read_events()] == [
        "start",
        "start",
        "record_damaged",
    ]
    assert run_dir.seconds()
    assert run_dir.condemned() == []
    assert run_dir.mend() == []


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\x00", b"[" * 100_000, b"{}", None])
def test_any_damage_of_what_only_tells_of_the_run_is_set_aside(run_dir, content):
    names = ["plan.json", "provenance.json", "summary.json", "progress.json"]
    for name in names:
        if content is None:
            (run_dir.path / name).mkdir()
        else:
            (run_dir.path / name).write_bytes(content)
    assert len(run_dir.mend()) == len(names)
    assert sorted(path.name for path in run_dir.path.glob("*.damaged")) == sorted(
        f"{name}.damaged" for name in names
    )
    run_dir.write_provenance()
    run_dir.settle_account()
    assert run_dir.read_summary() is None
    assert run_dir.mend() == []


def test_what_cannot_be_read_is_set_aside_too(run_dir):
    run_dir.events.mkdir()
    (run_dir.path / "events.jsonl.damaged").write_text("of an earlier time")
    (text,) = run_dir.mend()
    assert "cannot be read: Is a directory" in text
    assert (run_dir.path / "events.jsonl.2.damaged").is_dir()
    assert run_dir.state() == "new"


def test_numbers_that_are_not_finite_are_words_in_every_file(run_dir):
    run_dir.write_summary(
        {"loss": [float("nan"), {"best": float("-inf")}], "steps": (1, float("inf"))}
    )
    run_dir.event("failed", reason="x", loss=float("nan"))
    text = (run_dir.path / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "loss": ["NaN", {"best": "-Infinity"}],
        "steps": [1, "Infinity"],
    }
    assert run_dir.read_events()[0]["loss"] == "NaN"


def test_events_of_two_processes_do_not_mix(run_dir):
    program = (
        "import sys; from scaling.runs.directory import RunDir\nfor n in range(40): "
        "RunDir(sys.argv[1]).event('resume', step=n)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(run_dir.path)]) for _ in range(2)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert sorted(event["step"] for event in run_dir.read_events()) == sorted(
        [*range(40), *range(40)]
    )


def test_an_append_waits_for_one_that_is_under_way(run_dir):
    run_dir.event("start")
    with run_dir.events.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=run_dir.event, args=("resume",))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        other.write('{"kind": "preempted", "time_s": 1.0}\n')
    thread.join()
    assert [event["kind"] for event in run_dir.read_events()] == ["start", "preempted", "resume"]


def test_provenance_lists_attempts_and_no_secret(run_dir, monkeypatch):
    secret = "hunter2hunter2"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    command = [
        "python",
        "-m",
        "scaling.run",
        f"logger.api_key={secret}",
        "--token",
        secret,
        f"data.path=s3://u:{secret}@b/x?sig={secret}",
    ]
    monkeypatch.setattr(sys, "orig_argv", [*command, "train.n_tokens=5", "hf_" + "a" * 34])
    run_dir.write_provenance(devices=["A100", "A100"])
    run_dir.write_provenance()
    text = (run_dir.path / "provenance.json").read_text()
    first, second = json.loads(text)["attempts"]
    assert secret not in text
    assert "hf_a" not in text
    assert first["command"][:4] == ["python", "-m", "scaling.run", f"logger.api_key={HIDDEN}"]
    assert "train.n_tokens=5" in first["command"]
    assert first["devices"] == ["A100", "A100"]
    assert "devices" not in second
    assert first["packages"]["torch"].startswith("2.")
    assert first.get("git") == git_state(Path(files.__file__).parent)


def test_an_installed_package_does_not_take_the_commit_of_the_repository_around_it(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Someone's own"], check=True)
    package = tmp_path / "site-packages" / "scaling"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    assert git_state(package) is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "All"], check=True)
    assert git_state(package)["dirty"] is False
    (package / "__init__.py").write_text("x = 1\n")
    assert git_state(package)["dirty"] is True


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "--api-key",
        "HF_TOKEN",
        "wandb.apiKey",
        "password",
        "db_passwd",
        "AWS_SECRET_ACCESS_KEY",
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)
    assert redact_command([f"{name}=x"]) == [f"{name}={HIDDEN}"]


@pytest.mark.parametrize(
    "name",
    [
        "train.n_tokens",
        "tokenizer",
        "data.shard_tokens",
        "schedule.warmup_tokens",
        "key",
        "run.name",
        "author",
    ],
)
def test_names_of_what_may_be_shown(name):
    assert redact_command([f"{name}=x", "--" + name, "y"]) == [f"{name}=x", "--" + name, "y"]


@pytest.mark.parametrize(
    "write",
    [
        lambda run_dir: run_dir.create(),
        lambda run_dir: run_dir.write_plan({}),
        lambda run_dir: run_dir.event("start"),
        lambda run_dir: run_dir.lock().__enter__(),
    ],
)
@pytest.mark.parametrize("place", ["under_a_file", "/proc/1/fdinfo/run"])
def test_a_place_that_cannot_be_written_is_one_clear_error(write, place, tmp_path):
    (tmp_path / "under_a_file").touch()
    run_dir = RunDir(tmp_path / place / "run")
    with pytest.raises(RunDirError) as caught:
        write(run_dir)
    assert str(run_dir.path) in str(caught.value)
    assert "run.root=DIR" in caught.value.fix


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "Free some space"), (errno.EROFS, "read-only")]
)
def test_a_full_or_read_only_disk_loses_nothing(run_dir, monkeypatch, code, advice):
    run_dir.write_summary({"loss": 1})
    run_dir.event("start")
    before = {path.name: path.read_bytes() for path in run_dir.path.iterdir() if path.is_file()}

    def fail(*args):
        raise OSError(code, os.strerror(code))

    def write_half(fd, data):
        if len(data) < 20:
            fail()
        return os_write(fd, data[:10])

    os_write = os.write
    monkeypatch.setattr(files.os, "write", write_half)
    monkeypatch.setattr(files.os, "fsync", fail)
    for write in (
        lambda: run_dir.write_summary({"loss": 2}),
        lambda: run_dir.event("failed", reason="the disk is full"),
    ):
        with pytest.raises(RunDirError, match=errno.errorcode[code]) as caught:
            write()
        assert advice in caught.value.fix
    monkeypatch.undo()
    assert {
        path.name: path.read_bytes() for path in run_dir.path.iterdir() if path.is_file()
    } == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, where this user may mount one."""
    path = tmp_path / "small"
    path.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], capture_output=True
    ).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    from scaling.metrics.record import MetricLog, read_metrics

    log, written = MetricLog(small_disk / "metrics.jsonl"), []

    def fill():
        for step in range(1, 10_000):
            log.record(step, step, 1.0, 1.0, {"train/loss": 1 / step})
            written.append(step)

    with pytest.raises(RunDirError, match="ENOSPC"):
        fill()
    assert log.path.read_bytes().endswith(b"}\n")
    assert [record["step"] for record in read_metrics(log.path)] == written
    assert len(written) > 10
    with pytest.raises(RunDirError, match="ENOSPC"):
        files.write_json(small_disk / "summary.json", {"text": "x" * 70_000})
    assert [path.name for path in small_disk.iterdir()] == ["metrics.jsonl"]
