"""What a stranger wrote executes nothing, nothing listens to strangers, and no secret is written
down."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scaling import export, fit, generate, predict, run, status
from scaling.channel.failure import report
from scaling.checkpoint.manifest import MANIFEST, sealed
from scaling.composition.code_refusal import refuse_targets
from scaling.composition.compose import compose, words_for
from scaling.composition.shorthand import quoted
from scaling.data.corpus import Corpus
from scaling.errors import ConfigError, ScalingError
from scaling.launch.ray.cluster import RayCluster
from scaling.launch.run import drive
from scaling.redaction import HIDDEN, redact
from tests.support.configs import composed
from tests.support.runs import TWO_WORKERS, Workplace, descendants, listening_beyond_loopback

ROOT = Path(__file__).parents[2]

# Files.


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def bombs(made: Path) -> dict[str, bytes]:
    """Content of files that make the directory `made` when read by what executes what it reads."""
    saved, array = io.BytesIO(), io.BytesIO()
    torch.save({"weight": Bomb(made)}, saved)
    np.save(array, np.array([Bomb(made)], dtype=object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(Bomb(made)),
        "torch": saved.getvalue(),
        "numpy": array.getvalue(),
        "yaml": f"!!python/object/apply:os.mkdir ['{made}']\n".encode(),
        "python": f"__import__('os').mkdir('{made}')\n".encode(),
    }


def test_the_bombs_go_off(tmp_path: Path) -> None:
    import yaml

    readers: dict[str, Callable[[bytes], Any]] = {
        "pickle": pickle.loads,
        "torch": lambda content: torch.load(io.BytesIO(content), weights_only=False),
        "numpy": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
        "yaml": yaml.unsafe_load,
        "python": lambda content: eval(content),
    }
    for kind, content in bombs(tmp_path / "made").items():
        readers[kind](content)
        assert (tmp_path / "made").is_dir(), f"{kind} did not execute its content"
        (tmp_path / "made").rmdir()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped in the middle: the directory that holds it, its text and its corpus."""
    root = tmp_path_factory.mktemp("trained")
    (root / "text").mkdir()
    for number in range(12):
        (root / "text" / f"{number}.txt").write_text(
            f"The {number}th text of twelve is short. " * 30
        )
    assert drive(config_of(root)) == 0
    return root


def config_of(root: Path) -> Any:
    return composed(
        "data=text_files",
        f"data.path='{root}/text/*.txt'",
        f"data.cache_dir={root / 'cache'}",
        f"run.root={root / 'runs'}",
        "run.name=theirs",
        "model.n_layers=1",
        "model.d_model=32",
        "model.n_heads=2",
        "tokenizer=byte",
        "train.seq_len=32",
        "train.n_tokens=1000",
        "train.global_batch_size=4",
        "train.sample_tokens=4",
        "layout=manual",
        "layout.dp=1",
        "layout.engine=reference",
    )


def read_all(root: Path, out: Path) -> list[int]:
    """Whatever reads a run directory or a corpus, by every command; what they say of damage is
    another test's. Exit codes."""
    theirs = next((root / "runs").glob("theirs-*"))
    words = [f"run.root={root / 'runs'}", "from=theirs"]
    codes = [
        generate.main([*words, "prompt=The", "max_new_tokens=2", "device=cpu"]),
        export.main([*words, f"to={out / 'own'}"]),
        status.main([str(root / "runs")]),
    ]
    fit.main([f"study={root / 'runs'}", f"out={out / 'laws'}"])
    fit.main(
        [
            f"table={theirs / 'metrics.jsonl'}",
            "n=n_tokens",
            "c=flops",
            "loss=train/loss",
            f"out={out / 'laws'}",
        ]
    )
    predict.main([f"fit={theirs}", "c=1e14"])
    for path in [*(root / "cache").glob("*/")]:
        try:
            with Corpus.open(path).stream(config_of(root), "train") as stream:
                Corpus.open(path).load_tokenizer()
                stream.read(np.arange(stream.n_sequences))
        except ScalingError:
            codes.append(1)
    return codes


def vouch_for(path: Path) -> None:
    """Have the manifest beside a file of a checkpoint say that its content is right, as its author
    would."""
    content = path.read_bytes()
    digest = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = path.parent / MANIFEST
    if path != manifest and manifest.exists():
        fields = json.loads(manifest.read_text())
        del fields["sha256"]
        fields["files"][path.name] = digest
        manifest.write_text(json.dumps(sealed(fields)))


def files_of(root: Path) -> Iterator[Path]:
    for directory in ("runs", "cache"):
        yield from (
            path
            for path in sorted((root / directory).rglob("*"))
            if path.is_file() and path.suffix != ".lock"
        )


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy", "yaml", "python"])
def test_no_file_of_a_run_or_corpus_is_executed(kind: str, trained: Path, tmp_path: Path) -> None:
    """Each in turn replaced by a bomb, which the manifest vouches for, and read by every
    command."""
    assert set(read_all(trained, tmp_path / "sound")) == {0}, "what is read is read to its end"
    trained = Path(shutil.copytree(trained, tmp_path / "theirs"))
    made = tmp_path / "made"
    content = bombs(made)[kind]
    names = set()
    for path in files_of(trained):
        names.add(path.name)
        beside = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
        path.write_bytes(content)
        vouch_for(path)
        read_all(trained, tmp_path / "out")
        assert not made.exists(), path
        for file, before in beside.items():
            file.write_bytes(before)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    expected = {
        "config.yaml",
        "manifest.json",
        "rank-00000.safetensors",
        "tokenizer.json",
        "index.json",
        "train-000000.tar",
    }
    assert expected <= names


FORBIDDEN = {
    "torch.load",
    "torch.save",
    "pickle.load",
    "pickle.loads",
    "np.load",
    "numpy.load",
    "joblib.load",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "marshal.load",
    "marshal.loads",
    "pd.read_pickle",
    "os.system",
    "eval",
    "exec",
    "compile",
    "__import__",
    "importlib.import_module",
    "hydra.utils.instantiate",
    "instantiate",
}
OF_OUR_OWN_NAMES = {
    ("__main__.py", "importlib.import_module"),
    ("completion.py", "importlib.import_module"),
    ("private.py", "importlib.import_module"),
    ("library.py", "importlib.import_module"),
}
"""Names that stand in a table of ours: commands, their options, modules of Ray and DeepSpeed."""
OF_OUR_OWN_FILES = {("export_check.py", "from_pretrained")}
"""What reads back what an export has just written."""
FORBIDDEN_METHODS = {
    "extractall",
    "extract",
    "unsafe_load",
    "read_pickle",
    "from_pretrained",
    "broadcast_object_list",
    "all_gather_object",
    "gather_object",
    "scatter_object_list",
}
FORBIDDEN_MODULES = {
    "pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "multiprocessing.connection",
}


def test_nothing_that_executes_what_it_reads_is_called() -> None:
    for path in [
        *(ROOT / "scaling").rglob("*.py"),
        *(ROOT / "hydra_plugins").rglob("*.py"),
        *(ROOT / "cluster").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in FORBIDDEN or (path.name, called) in OF_OUR_OWN_NAMES, where
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                method = getattr(node.func, "attr", "")
                if (path.name, method) in OF_OUR_OWN_FILES:
                    assert given["use_safetensors"] == given["local_files_only"] == "True", where
                else:
                    assert method not in FORBIDDEN_METHODS, where
                assert (
                    given.get("shell", "False")
                    == given.get("trust_remote_code", "False")
                    == "False"
                ), where
                assert given.get("weights_only", "True") == "True", where
                assert given.get("allow_pickle", "False") == "False", where
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import | ast.ImportFrom)
                else []
            )
            module = getattr(node, "module", "") or ""
            assert FORBIDDEN_MODULES.isdisjoint({module, *names}), where
            assert FORBIDDEN.isdisjoint(f"{module}.{name}" for name in names), where


def test_the_words_of_a_configuration_are_not_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recommended run is composed of a study's own words, which must not draw on the environment
    of who starts it."""
    monkeypatch.setenv("HF_TOKEN", "s3cret-s3cret")
    text = "${oc.env:HF_TOKEN}"
    config = compose()
    theirs = config.model_copy(
        update={"train": config.train.model_copy(update={"sample_prompt": text})}
    )
    assert compose(words_for(theirs, "model=gpt_nano")).train.sample_prompt == text


@given(st.text(alphabet="\\$}{'\" ,a:=", max_size=12))
def test_a_quoted_word_stands_for_its_text(text: str) -> None:
    override = OverridesParser.create().parse_override(f"key={quoted(text)}")
    assert OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True) == {
        "key": text
    }


# Configurations.

CALL = "{_target_: os.mkdir, _args_: [made]}"
COMMANDS = {
    "a callback in a file": ["--config-dir=theirs", "+experiment=bad"],
    "a reference of the sweeper": ["-m", f"+y={{x: {CALL}}}", "++hydra.sweeper.params=${y}"],
    "a factory of logs": ["--config-dir=theirs", "hydra/job_logging=theirs"],
    "a module that logs name": ["--config-dir=theirs", "hydra/job_logging=importing"],
    "a package to search": ["hydra.searchpath=[pkg://evilmod]"],
    "a package to search, below it": ["hydra.searchpath=['pkg://evilmod/conf']"],
    "a package to search, in their primary configuration": [
        "--config-dir=theirs",
        "--config-name=searching",
    ],
    "a package of configurations": ["--config-path=pkg://evilmod"],
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
IMPORTING_LOGGING = """\
version: 1
handlers:
  console: {class: logging.StreamHandler, stream: "ext://evilmod.x"}
"""
SEARCHING = """\
defaults: [config, _self_]
hydra:
  searchpath: ["pkg://evilmod"]
"""
FILES = {
    "theirs/experiment/bad.yaml": THEIRS,
    "theirs/hydra/job_logging/theirs.yaml": THEIR_LOGGING,
    "theirs/hydra/job_logging/importing.yaml": IMPORTING_LOGGING,
    "theirs/searching.yaml": SEARCHING,
    "modules/evilmod/__init__.py": "import os\nos.mkdir('made')\nx = None\n",
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_makes_no_object_of_a_configuration(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(sys, "argv", ["scaling.run", *COMMANDS[case], "dry_run=true"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2, capsys.readouterr()
    assert "ConfigError: " in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "modules"}
    assert sys.modules.pop("evilmod", None) is None


LOGGING = "logging.StreamHandler"
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
    "a handler of logs": {
        "job_logging": {"handlers": {"x": {"class": "os.mkdir", "path": "made"}}}
    },
    "what logging imports": {
        "job_logging": {"handlers": {"x": {"class": "logging.os.mkdir", "path": "made"}}}
    },
    "what logging can do": {
        "job_logging": {"handlers": {"x": {"class": "logging.FileHandler.os.PopenHandler"}}}
    },
    "a factory of logs": {"hydra_logging": {"formatters": {"x": {"()": "os.mkdir"}}}},
    "a name that logging imports": {
        "job_logging": {"handlers": {"x": {"class": LOGGING, "stream": "ext://evilmod.x"}}}
    },
    "a name set on a handler": {
        "job_logging": {"handlers": {"x": {"class": LOGGING, ".": {"y": "ext://evilmod.x"}}}}
    },
    "a name in a list": {"hydra_logging": {"root": {"handlers": ["ext://evilmod.x"]}}},
    "a name that logging looks up": {
        "job_logging": {"handlers": {"x": {"class": LOGGING, "stream": "cfg://y.x"}}}
    },
    "a stream, and more": {
        "job_logging": {"handlers": {"x": {"class": LOGGING, "stream": "ext://sys.stdout.x"}}}
    },
    "a name not known yet": {
        "job_logging": {
            "handlers": {"x": {"class": LOGGING, "stream": "${hydra:job.name}//evilmod.x"}}
        }
    },
    "a directory not known yet": {
        "runtime": {"output_dir": "${hydra:job.name}"},
        "job": {"name": "ext:"},
    },
    "a class not known yet": {
        "job_logging": {"handlers": {"x": {"class": "logging.${hydra:verbose}Handler"}}}
    },
    "a library that programs load": {"job": {"env_set": {"LD_PRELOAD": "made.so"}}},
}


@pytest.mark.parametrize("case", TARGETS)
def test_what_a_configuration_names_is_not_called(case: str) -> None:
    composed = OmegaConf.create(
        {"hydra": TARGETS[case], "y": {"x": {"_target_": "os.mkdir", "_args_": ["made"]}}}
    )
    with pytest.raises(ConfigError, match="configurations are data"):
        refuse_targets(composed)


def test_what_hydra_itself_needs_is_let_through() -> None:
    handlers = {
        "x": {
            "class": "logging.FileHandler",
            "filename": "${hydra.runtime.output_dir}/${hydra.job.name}.log",
        },
        "y": {"class": LOGGING, "stream": "ext://sys.stdout"},
        "z": {"class": LOGGING, "stream": "ext://sys.stderr"},
    }
    needed = {
        "launcher": {"_target_": "hydra_plugins.scaling_study.StudyLauncher"},
        "sweeper": {
            "_target_": "hydra_plugins.scaling_study.StudySweeper",
            "params": {"optim.lr": "1e-3,3e-3"},
        },
        "job_logging": {"version": 1, "handlers": handlers},
        "callbacks": {},
        "job": {"env_set": {}, "name": "???"},
        "runtime": {"output_dir": "???"},
    }
    refuse_targets(OmegaConf.create({"hydra": needed}))
    handlers["y"]["stream"] = "ext://os.environ"
    with pytest.raises(ConfigError, match=r"ext://os\.environ"):
        refuse_targets(OmegaConf.create({"hydra": needed}))


def test_a_word_of_a_composition_imports_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evilmod.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="pkg://evilmod would be imported"):
        compose(["hydra.searchpath=[pkg://evilmod]"])
    assert "evilmod" not in sys.modules
    compose(["hydra.searchpath=[pkg://hydra.conf]"])


# Ray.


class FakeRay:
    """Notes what a cluster is started with."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def init(self, **options: Any) -> None:
        self.options = options


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(
        os, "environ", os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "/theirs"}
    )
    return fake


def test_an_embedded_cluster_listens_on_loopback_and_asks_for_a_token_of_its_own(
    ray: FakeRay,
) -> None:
    cluster = RayCluster(composed().cluster, 2)
    cluster.set_environment()
    cluster.connect()
    assert ray.options["address"] == "local"
    assert ray.options["include_dashboard"] is False
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0", (
        "on this Ray's own name of loopback"
    )
    assert {os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]} == {"lo"}
    assert os.environ["RAY_AUTH_MODE"] == "token", "whatever was set before"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert cluster.session is not None
    assert cluster.session.stat().st_mode & 0o077 == 0, "nobody else looks into its directory"


def test_a_standing_cluster_is_shown_the_token_that_there_is(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "RAY_AUTH_TOKEN", "ours")
    del os.environ["RAY_AUTH_MODE"]
    cluster = RayCluster(composed("cluster=existing", "cluster.address=auto").cluster, 2)
    cluster.set_environment()
    cluster.connect()
    assert ray.options["address"] == "auto"
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]) == ("token", "ours")


REACH_IN = """
import ray, sys
ray.init(address=sys.argv[1], logging_level="critical")
ray.get(ray.remote(lambda: None).remote())
print("executed")
"""


@pytest.mark.slow
def test_a_stranger_on_the_machine_is_refused_by_a_running_cluster(workplace: Workplace) -> None:
    run = workplace.start(
        *TWO_WORKERS,
        "train.n_tokens=20M",
        root=workplace.root / "reached",
        env={"RAY_AUTH_MODE": "disabled"},
    )
    run.wait_for_step(5)
    pids = [run.process.pid, *(pid for pid, _ in descendants(run.process.pid))]
    assert listening_beyond_loopback(pids) == []
    arguments = [
        word for pid in pids for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    ]
    address = next(
        word.partition("=")[2] for word in arguments if word.startswith("--gcs-address=")
    )
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    for theirs in (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
    ):
        command = [sys.executable, "-c", REACH_IN, address]
        stranger = subprocess.Popen(
            command,
            env=ours | loopback | theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said = stranger.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:  # it tries again and again
            stranger.kill()
            said = stranger.communicate()[0]
        assert "executed" not in said
        assert "InvalidAuthToken" in said or "ConnectionError" in said, said
    run.signal(signal.SIGTERM)
    assert run.wait() == 75


# Secrets. What whole runs write is looked through by tests/launch/test_run_single.py and
# tests/launch/test_run_workers.py.

SECRET = "s3cret-s3cret"


@pytest.mark.parametrize(
    "words",
    [
        ["data=shards", f"data.path=https://me:{SECRET}@host/dir"],
        [
            "data=text_pairs",
            "objective=seq2seq",
            "model=transformer_base",
            "data.path=a",
            f"data.target_path='https://host/b?sig={SECRET}'",
        ],
        [
            "data=mixture",
            f"data.components=[{{name: a, weight: 1, kind: shards, "
            f"path: 'https://me:{SECRET}@host/a'}}]",
        ],
        ["cluster=existing", f"cluster.address='ray://me:{SECRET}@host:1'"],
        ["train.sample_prompt=hf_" + "s3cret" * 5],
        [f"run.root=https://me:{SECRET}@host/runs"],
    ],
)
def test_a_secret_in_a_value_is_refused_and_not_repeated(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="holds a password or a key") as caught:
        compose(words)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["run.name=task-summarization-experiment-1"],
        ["data=text_files", "data.path=/mnt/disk-shared-datasets-for-everyone/x.txt"],
    ],
)
def test_a_name_that_holds_the_beginning_of_a_key_is_none(words: list[str]) -> None:
    key, value = words[-1].split("=")
    section, name = key.split(".")
    assert compose(words).model_dump()[section][name] == value


@pytest.mark.parametrize("before", ["", " ", "=", "_", "/", "%3D", "\\n"])
def test_a_key_is_hidden_wherever_a_word_may_begin(before: str) -> None:
    for key in ("hf_" + "s3cret" * 5, "sk-" + "s3cret" * 5, "wandb_v1_" + "s3cret" * 6):
        assert (
            redact(f"x{before}{key}" if before else key) == f"{'x' * bool(before)}{before}{HIDDEN}"
        )


def test_no_error_shows_a_secret(tmp_path: Path) -> None:
    text = f"https://me:{SECRET}@host/x?y=1 and https://host/z?X-Amz-Signature={SECRET}&a=b"
    error = ScalingError(text, text, text)
    for shown in (str(error), repr(error), error.what, error.where, error.fix):
        assert SECRET not in str(shown)
        assert "@host/x?y=1" in str(shown)
        assert "&a=b" in str(shown)


class Kept:
    """A channel that keeps what it is sent."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, message: Any) -> None:
        self.messages.append(message)


def test_no_traceback_of_a_rank_shows_a_secret(tmp_path: Path) -> None:
    channel: Any = Kept()
    report(OSError(f"https://me:{SECRET}@host/x does not answer"), channel, tmp_path, 0)
    assert SECRET not in str(channel.messages)
    (written,) = (tmp_path / "errors").iterdir()
    assert SECRET not in written.read_text()
    assert "does not answer" in written.read_text()
