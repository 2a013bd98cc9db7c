"""W&B and TensorBoard, read back with their own readers."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.metrics import wandb_sink
from scaling.metrics.reachable import reachable
from scaling.metrics.record import MetricLog, read_metrics
from scaling.metrics.sinks import back_fill, make_sinks
from scaling.metrics.wandb_sink import log_results


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """No W&B key, mode or settings of the machine's user."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no_config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def wandb_config(*overrides: str) -> RunConfig:
    return compose(["logger=wandb", "logger.project=tests", "logger.group=ladder", *overrides])


def record_steps(log: MetricLog, steps: range) -> None:
    for step in steps:
        log.record(
            step,
            100 * step,
            1e9 * step,
            0.5 * step,
            {"train/loss": 10 / step, "train/lr": 1e-3 / 3},
        )
        if step % 5 == 0:
            log.record(step, 100 * step, 1e9 * step, 0.6 * step, {"val/loss": 11 / step})


def wandb_entries(run_dir: Path) -> list[dict]:
    """Every entry of every start, in order of starts, by wandb's own reader."""
    entries = []
    for path in sorted(run_dir.glob("wandb/*/run-*.wandb"), key=lambda p: p.stat().st_mtime_ns):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        offline = os.environ | {"WANDB_MODE": "offline"}
        done = subprocess.run(
            command, env=offline, capture_output=True, text=True, check=True, timeout=60
        )
        entries += [json.loads(line) for line in done.stdout.splitlines()]
    return entries


def history(entries: list[dict]) -> list[dict]:
    """What was logged, without W&B's own clock."""
    items = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    return [
        {k: v for k, v in item.items() if k not in ("_runtime", "_timestamp")} for item in items
    ]


def as_wandb_shows(records: list[dict]) -> list[dict]:
    """Records merged by step, under W&B's names."""
    merged: dict[int, dict] = {}
    for record in records:
        item = {"_step": record["step"], "train/tokens": record["n_tokens"], **record}
        merged.setdefault(record["step"], {}).update(
            {k: v for k, v in item.items() if k not in ("step", "n_tokens")}
        )
    return list(merged.values())


@pytest.mark.usefixtures("no_account")
def test_wandb_holds_the_record_and_continues_after_a_resume(tmp_path, capfd):
    run_dir, notices = tmp_path / "run", []
    run_dir.mkdir()
    log = MetricLog(
        run_dir / "metrics.jsonl", make_sinks(wandb_config(), run_dir, None, notices.append)
    )
    record_steps(log, range(1, 9))
    log.close()
    before = as_wandb_shows(read_metrics(run_dir / "metrics.jsonl"))

    log = MetricLog(
        run_dir / "metrics.jsonl", make_sinks(wandb_config(), run_dir, 6, notices.append)
    )
    log.resume(6)
    record_steps(log, range(7, 13))
    log.close()
    entries = wandb_entries(run_dir)
    assert history(entries)[:8] == before
    assert history(entries) == as_wandb_shows(read_metrics(run_dir / "metrics.jsonl"))

    runs = [entry["run"] for entry in entries if entry["type"] == "run"]
    assert {run["run_id"] for run in runs} == {(run_dir / "wandb_id").read_text().strip()}
    assert len(runs) == 2
    assert all(
        run["resume"] and run["project"] == "tests" and run["run_group"] == "ladder" for run in runs
    )
    assert runs[0]["config"]["update"]["optim"]["lr"] == wandb_config().optim.lr
    steps = [entry["metric"] for entry in entries if entry["type"] == "metric"]
    assert {(metric["glob_name"], metric["step_metric"]) for metric in steps} == {
        ("*", "train/tokens")
    }
    assert len(notices) == 2
    assert all(
        "offline, since there is no API key" in notice and "wandb sync" in notice
        for notice in notices
    )
    assert capfd.readouterr() == ("", "")
    assert not any((tmp_path / "home").rglob("*"))


@pytest.mark.usefixtures("no_account")
def test_the_results_of_a_study_are_one_table_in_its_group(tmp_path):
    study, notices = tmp_path / "sweep", []
    study.mkdir()
    rows = [
        {"run": "a", "optim.lr": 1e-3, "val_loss": 2.5},
        {"run": "b", "optim.lr": 2e-3, "val_loss": None},
    ]
    for lasting in (rows[:1], rows):
        log_results(wandb_config(), study, lasting, notices.append)
    entries = wandb_entries(study)
    runs = [entry["run"] for entry in entries if entry["type"] == "run"]
    assert {run["run_id"] for run in runs} == {(study / "wandb_id").read_text().strip()}, (
        "the second call continues the run"
    )
    assert all(
        (run["run_group"], run["job_type"], run["display_name"])
        == ("ladder", "study", "sweep-results")
        for run in runs
    )
    tables = sorted(study.rglob("*.table.json"), key=lambda path: path.stat().st_mtime_ns)
    last = json.loads(tables[-1].read_text())
    assert last["columns"] == ["run", "optim.lr", "val_loss"]
    assert last["data"] == [["a", 1e-3, 2.5], ["b", 2e-3, None]]
    assert (
        notices
        == [
            "W&B: table of results, offline, since there is no API key (set WANDB_API_KEY, "
            "or run `wandb login`)"
        ]
        * 2
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from scaling.metrics.record import MetricLog
from scaling.metrics.sinks import make_sinks
sys.path.insert(0, sys.argv[2])
from tests.metrics.test_sinks import record_steps, wandb_config
run_dir = Path(sys.argv[1])
sinks = make_sinks(wandb_config(), run_dir, None, print)
record_steps(MetricLog(run_dir / "metrics.jsonl", sinks), range(1, 9))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("no_account")
def test_what_wandb_lost_to_a_kill_is_replayed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parents[2])], timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 9
    assert len(history(wandb_entries(tmp_path))) < 8
    log = MetricLog(
        tmp_path / "metrics.jsonl", make_sinks(wandb_config(), tmp_path, 6, lambda text: None)
    )
    log.resume(6)
    record_steps(log, range(7, 10))
    log.close()
    assert history(wandb_entries(tmp_path)) == as_wandb_shows(
        read_metrics(tmp_path / "metrics.jsonl")
    )


@pytest.fixture
def silent_server():
    """A port that accepts connections for as long as its backlog lasts, and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def refused_url() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"WANDB_MODE": "offline"}, "WANDB_MODE=offline"),
        ({"WANDB_API_KEY": "short"}, "the API key is not usable"),
        (
            {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": "refused"},
            "does not answer within 3 s",
        ),
    ],
)
def test_why_wandb_is_offline(environment, reason, monkeypatch):
    import wandb

    for name, value in environment.items():
        monkeypatch.setenv(name, refused_url() if value == "refused" else value)
    wandb.teardown()
    begun_s = time.monotonic()
    mode, found = wandb_sink._choose_mode(wandb)
    wandb.teardown()
    assert (mode, reason in found) == ("offline", True), found
    assert "0123456789" not in found
    assert time.monotonic() - begun_s < 5


@pytest.mark.usefixtures("no_account")
def test_a_server_that_never_answers_ends_offline_in_bounded_time(
    tmp_path, monkeypatch, silent_server
):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setattr(wandb_sink, "_INIT_TIMEOUT_S", 1.0)
    wandb.teardown()
    notices = []
    begun_s = time.monotonic()
    (sink,) = make_sinks(wandb_config(), tmp_path, None, notices.append)
    record_steps(MetricLog(tmp_path / "metrics.jsonl", [sink]), range(1, 3))
    sink.close()
    wandb.teardown()
    assert time.monotonic() - begun_s < 10
    assert len(notices) == 1
    assert "offline, since it cannot be used" in notices[0]
    assert [item["_step"] for item in history(wandb_entries(tmp_path))] == [1, 2]


@pytest.mark.usefixtures("no_account")
def test_wandb_disabled_is_no_sink(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    notices = []
    assert make_sinks(wandb_config(), tmp_path, None, notices.append) == []
    wandb.teardown()
    assert notices == ["W&B: not used, since WANDB_MODE=disabled"]
    assert list(tmp_path.iterdir()) == []


class BrokenRun:
    """A W&B run whose service is gone."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, *args, **kwargs):
        self.calls += 1
        raise BrokenPipeError("service gone")


def test_trouble_in_wandb_ends_the_view_and_not_the_run(tmp_path):
    run, notices = BrokenRun(), []
    sink = wandb_sink.WandbSink(run, -1, notices.append)
    log = MetricLog(tmp_path / "metrics.jsonl", [sink])
    record_steps(log, range(1, 4))
    log.close()
    assert (run.calls, len(notices), len(read_metrics(log.path))) == (1, 1, 3)
    assert "service gone" in notices[0]


class OnlineRun:
    """A W&B run that the server has up to step 4."""

    url, resumed, step = "https://wandb.example/run", True, 5

    def __init__(self) -> None:
        self.steps = []

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, values, step):
        self.steps.append(step)


def test_an_online_run_is_filled_up_from_where_the_server_stands(tmp_path, monkeypatch):
    run, notices = OnlineRun(), []
    monkeypatch.setattr(wandb_sink, "_choose_mode", lambda wandb: ("online", ""))
    monkeypatch.setattr(wandb_sink, "_try_init", lambda wandb, run_dir, **arguments: (run, ""))
    record_steps(MetricLog(tmp_path / "metrics.jsonl"), range(1, 9))
    log = MetricLog(
        tmp_path / "metrics.jsonl", make_sinks(wandb_config(), tmp_path, 6, notices.append)
    )
    log.resume(6)
    record_steps(log, range(7, 9))
    assert run.steps == [5, 5, 6, 7, 8]  # step 5 has a train and a val record
    assert notices == [
        "W&B: https://wandb.example/run",
        "W&B: 3 earlier records filled in from metrics.jsonl.",
    ]


def test_secrets_are_not_sent_with_the_configuration(tmp_path):
    import wandb

    config = wandb_config("data=text_files", "data.path=x")
    # composition would refuse it
    data = config.data.model_copy(update={"path": "s3://user:hunter2@bucket/x?token=abcd"})
    config = config.model_copy(update={"data": data})
    arguments = wandb_sink._init_arguments(wandb, config, tmp_path, "id")
    assert "hunter2" not in str(arguments)
    assert "abcd" not in str(arguments)
    assert "bucket/x" in arguments["config"]["data"]["path"]
    assert arguments["config"]["train"] == config.semantic()["train"]


def test_reachable_asks_the_proxy_where_there_is_one(monkeypatch, silent_server):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert reachable(silent_server)
    assert not reachable(refused_url())
    monkeypatch.setenv("http_proxy", silent_server)
    assert reachable("http://nowhere.invalid")
    monkeypatch.setenv("http_proxy", refused_url())
    assert not reachable("http://nowhere.invalid")


def test_reachable_does_not_wait_for_a_slow_name_server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def look_up(*args, **kwargs):
        time.sleep(2)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "create_connection", look_up)
    begun_s = time.monotonic()
    assert not reachable("http://slow.invalid", timeout_s=0.2)
    assert time.monotonic() - begun_s < 1


def tensorboard_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_holds_the_record_and_no_step_twice(tmp_path):
    config, path = compose(["logger=tensorboard"]), tmp_path / "metrics.jsonl"
    for resumed_step, steps in ((None, range(1, 9)), (6, range(7, 13))):
        log = MetricLog(path, make_sinks(config, tmp_path, resumed_step, print))
        log.resume(resumed_step)
        record_steps(log, steps)
        log.close()
    records, scalars = read_metrics(path), tensorboard_scalars(tmp_path)
    assert set(scalars) == {name for record in records for name in record if name != "step"}
    for tag in ("train/loss", "val/loss", "train/lr"):
        # float32 keeps 24 bits: a relative 2^-24 after rounding.
        expected = [
            (record["step"], pytest.approx(record[tag], rel=2**-24))
            for record in records
            if tag in record
        ]
        assert scalars[tag] == expected


def test_tensorboard_shows_values_that_are_not_finite(tmp_path):
    (sink,) = make_sinks(compose(["logger=tensorboard"]), tmp_path, None, print)
    sink.log({"step": 1, "n_tokens": 2, "flops": 3.0, "wall_s": 4.0, "train/loss": math.nan})
    sink.close()
    sink.close()
    ((step, value),) = tensorboard_scalars(tmp_path)["train/loss"]
    assert step == 1
    assert math.isnan(value)


def test_no_logger_is_no_sink_and_views_load_no_heavy_library(tmp_path):
    assert make_sinks(compose([]), tmp_path, None, print) == []
    program = (
        "import sys, scaling.metrics.record, scaling.metrics.throughput, scaling.metrics.sinks, "
        "scaling.runs.directory\n"
        "from scaling.metrics.tensorboard_sink import TensorBoardSink\n"
        "from pathlib import Path\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'wandb', 'tensorflow', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        "TensorBoardSink(Path(sys.argv[1]), 0).close()\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


def finished_run(tmp_path: Path) -> Path:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    record_steps(MetricLog(run_dir / "metrics.jsonl"), range(1, 13))
    return run_dir


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_is_filled_from_a_finished_run_once(tmp_path):
    run_dir, notices = finished_run(tmp_path), []
    config = compose(["logger=tensorboard"])
    for _ in range(2):
        back_fill(config, run_dir, notices.append)
    assert notices == [
        "TensorBoard: 14 earlier records filled in from metrics.jsonl.",
        "TensorBoard: has the whole run already.",
    ]
    assert len(list((run_dir / "tensorboard").iterdir())) == 1
    shown = scalars(run_dir)
    assert [step for step, _ in shown["train/loss"]] == list(range(1, 13))
    assert [step for step, _ in shown["val/loss"]] == [5, 10]
    assert [loss for _, loss in shown["train/loss"]] == pytest.approx(
        [10 / step for step in range(1, 13)]
    )


def test_a_run_that_changes_its_logger_gives_it_the_earlier_records(tmp_path):
    run_dir, notices, config = tmp_path / "run", [], compose(["logger=tensorboard"])
    run_dir.mkdir()
    for first, last, with_board in ((1, 4, True), (4, 7, False), (7, 10, True)):
        resumed = first - 1 or None
        log = MetricLog(
            run_dir / "metrics.jsonl",
            make_sinks(config, run_dir, resumed, notices.append) if with_board else (),
        )
        log.resume(resumed)
        # the first part is cut back by the second
        record_steps(log, range(first, last + (2 if last == 4 else 0)))
        log.close()
    assert [step for step, _ in scalars(run_dir)["train/loss"]] == list(range(1, 10))
    assert len(notices) == 1


@pytest.mark.usefixtures("no_account")
def test_wandb_is_filled_from_a_finished_run_once(tmp_path):
    run_dir, notices = finished_run(tmp_path), []
    for _ in range(2):
        back_fill(wandb_config(), run_dir, notices.append)
    assert notices[1:] == [
        "W&B: 14 earlier records filled in from metrics.jsonl.",
        "W&B: has the whole run already.",
    ]
    assert history(wandb_entries(run_dir)) == as_wandb_shows(
        read_metrics(run_dir / "metrics.jsonl")
    )
