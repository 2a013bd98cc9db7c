"""What a stranger wrote executes nothing, nothing listens to strangers, and no secret is written down."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scaling import run
from scaling.errors import ConfigError
from scaling.inert import refuse_targets

CALL = "{_target_: os.mkdir, _args_: [made]}"
COMMANDS = {
    "a callback in a file": ["--config-dir=theirs", "+experiment=bad"],
    "a reference of the sweeper": ["-m", f"+y={{x: {CALL}}}", "++hydra.sweeper.params=${y}"],
    "a factory of logs": ["--config-dir=theirs", "hydra/job_logging=theirs"],
    "a pickled job": ["--experimental-rerun=job.pickle"],
    "a pickled job, abbreviated": ["--exp", "job.pickle"],
    "a target among the data": [f"+data.x={CALL}"],
}
THEIRS = """\
# @package _global_
hydra:
  callbacks:
    x: {_target_: os.mkdir, _args_: [made]}
"""
THEIR_LOGGING = """\
version: 1
formatters:
  x: {"()": os.mkdir, path: made}
"""


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_makes_no_object_of_a_configuration(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("experiment/bad.yaml", THEIRS), ("hydra/job_logging/theirs.yaml", THEIR_LOGGING)):
        path = tmp_path / "theirs" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["scaling.run", *COMMANDS[case], "dry_run=true"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2, capsys.readouterr()
    assert "ConfigError: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


TARGETS = {
    "a callback": {"callbacks": {"x": {"_target_": "os.mkdir", "_args_": ["made"]}}},
    "callbacks that are a reference": {"callbacks": "${y}"},
    "a callback that is a reference": {"callbacks": {"x": "${y.x}"}},
    "a callback that is not known yet": {"callbacks": {"x": "${hydra:job.x}"}},
    "another launcher": {"launcher": {"_target_": "os.mkdir"}},
    "a launcher that is not known yet": {"launcher": {"_target_": "${hydra:job.x}"}},
    "an argument of the sweeper": {"sweeper": {"params": {"x": {"_target_": "os.mkdir"}}}},
    "a list of the sweeper": {"sweeper": {"params": [{"_target_": "os.mkdir"}]}},
    "a reference of the sweeper": {"sweeper": {"params": "${y}"}},
    "a handler of logs": {"job_logging": {"handlers": {"x": {"class": "os.mkdir", "path": "made"}}}},
    "what logging imports": {"job_logging": {"handlers": {"x": {"class": "logging.os.mkdir", "path": "made"}}}},
    "what logging can do": {"job_logging": {"handlers": {"x": {"class": "logging.FileHandler.os.PopenHandler"}}}},
    "a factory of logs": {"hydra_logging": {"formatters": {"x": {"()": "os.mkdir"}}}},
    "a library that programs load": {"job": {"env_set": {"LD_PRELOAD": "made.so"}}},
}


@pytest.mark.parametrize("case", TARGETS)
def test_what_a_configuration_names_is_not_called(case: str) -> None:
    composed = OmegaConf.create({"hydra": TARGETS[case], "y": {"x": {"_target_": "os.mkdir", "_args_": ["made"]}}})
    with pytest.raises(ConfigError, match="configurations are data"):
        refuse_targets(composed)


def test_what_hydra_itself_needs_is_let_through() -> None:
    handlers = {"x": {"class": "logging.FileHandler", "filename": "${hydra.runtime.output_dir}/${hydra.job.name}.log"}}
    needed = {
        "launcher": {"_target_": "hydra_plugins.scaling_study.StudyLauncher"},
        "sweeper": {"_target_": "hydra_plugins.scaling_study.StudySweeper", "params": {"optim.lr": "1e-3,3e-3"}},
        "job_logging": {"version": 1, "handlers": handlers}, "callbacks": {}, "job": {"env_set": {}, "name": "???"},
        "runtime": {"output_dir": "???"},
    }  # fmt: skip
    refuse_targets(OmegaConf.create({"hydra": needed}))
