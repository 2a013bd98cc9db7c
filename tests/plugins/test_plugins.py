"""Each checklist of CONTRIBUTING.md, followed once by a package outside of scaling:
toy/scaling_toy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import create_config_search_path

from scaling.composition.compose import compose
from scaling.config.run_config import conf_dir
from scaling.errors import ConfigError

TOY = Path(__file__).parent / "toy"
TINY = (
    "tokenizer=byte",
    "model.n_layers=1",
    "model.d_model=32",
    "model.n_heads=2",
    "train.seq_len=32",
    "train.global_batch_size=4",
    "train.n_tokens=512",
    "cluster.devices_per_node=1",
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy package is on the path, with the metadata that pip would write."""
    monkeypatch.syspath_prepend(TOY)
    _forget()
    yield
    _forget()


def _forget() -> None:
    """Clear what this process remembers of the installed packages, and what follows from it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("scaling."):
            for known in list(vars(module).values()):
                if hasattr(known, "cache_clear"):
                    known.cache_clear()


def trained(root: Path, *words: str) -> dict[str, Any]:
    """The summary of a run of one worker."""
    from scaling.launch.run import drive

    config = compose(
        [
            *TINY,
            "data=text_files",
            f"data.path={root}/text.txt",
            f"data.cache_dir={root}/cache",
            f"run.root={root}/runs",
            "layout=single",
            "train.sample_tokens=0",
            *words,
        ]
    )
    (root / "text.txt").write_text("A short text, repeated. " * 400)
    assert drive(config) == 0
    (summary,) = (root / "runs").glob("*/summary.json")
    return dict(json.loads(summary.read_text()))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "word", ["attention=toy", "position=toy", "objective=toy", "model=toy_nano"]
)
def test_a_toy_from_outside_is_planned_trained_and_saved(word: str, tmp_path: Path) -> None:
    summary = trained(tmp_path, word)
    assert summary["train_loss"] > 0, summary


@pytest.mark.usefixtures("installed")
def test_a_decoder_with_an_objective_from_outside_continues_a_text() -> None:
    from scaling.data.tokenizer.training import train_tokenizer
    from scaling.inference.prompts import Question, question

    config = compose([*TINY, "objective=toy"])
    tokenizer = train_tokenizer(config.tokenizer, ())
    assert question(config, tokenizer, "ab") == Question([97, 98])
    assert question(config, tokenizer, "") == Question([tokenizer.eot_id])


@pytest.mark.usefixtures("installed")
def test_parameters_of_toys_are_counted_as_the_model_has_them() -> None:
    from scaling.model import build_model
    from scaling.planner.cost.counts import count

    for word in ("attention=toy", "position=toy", "model=toy_nano"):
        config = compose([*TINY, word])
        model = build_model(config, "meta")
        assert (
            sum(parameter.numel() for parameter in model.parameters()) == count(config).n_params
        ), word


@pytest.mark.usefixtures("installed")
def test_a_form_from_outside_is_fitted(tmp_path: Path) -> None:
    from scaling import fit

    rows = "".join(f"{10.0**e},{2 * (10.0**e) ** -0.1}\n" for e in range(6, 13))
    (tmp_path / "runs.csv").write_text("d,loss\n" + rows)
    assert (
        fit.main(
            [f"table={tmp_path}/runs.csv", "d=d", "loss=loss", "form=toy", f"out={tmp_path}/laws"]
        )
        == 0
    )
    fitted = json.loads((tmp_path / "laws" / "fit.json").read_text())["forms"]["toy"]
    assert fitted["theta"][1] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.usefixtures("installed")
def test_a_device_from_outside_is_planned_for_and_recognised() -> None:
    from scaling.config.hardware import device_names, known_gpu

    assert compose(["cluster=2x4xTOY-8GB", "dry_run=true"]).cluster.device.name == "TOY-8GB"
    assert "TOY-8GB" in device_names()
    found = known_gpu("NVIDIA Toy Card")
    assert found is not None
    assert found.device["memory_gb"] == 8


@pytest.mark.usefixtures("installed")
def test_keys_that_a_toy_does_not_read_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"attention.stride is set, but attention=toy does not read it"
    ):
        compose([*TINY, "attention=toy", "attention.stride=4"])
    with pytest.raises(ConfigError, match=r"objective=toy does not fit model.family=bert"):
        compose(["model=bert_tiny", "objective=toy"])


@pytest.mark.usefixtures("installed")
def test_help_and_provenance_name_what_is_added() -> None:
    from scaling.commands.help import help_text
    from scaling.runs.provenance import package_versions

    (line,) = (line for line in help_text().splitlines() if line.strip().startswith("attention "))
    assert "toy" in line.split()
    assert package_versions()["scaling-toy"] == "0.1"


def test_a_name_that_no_package_adds_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"There are: .*alibi.*rope"):
        compose(["position=toy"])
    for key in ("attention.kind", "position.kind", "objective.kind", "model.family"):
        with pytest.raises(ConfigError, match=rf"{key}=toy: there are .*, ") as refused:
            compose([f"{key}=toy"])
        assert key in str(refused.value.where or refused.value.fix)


@pytest.mark.usefixtures("installed")
def test_planning_with_a_plugin_loads_no_torch() -> None:
    code = (
        "import sys; from scaling.composition.compose import compose; "
        "from scaling.planner.cost.counts import count;"
        "count(compose(['model=toy_nano', 'attention=toy'])); "
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_with_toy()
    )
    assert done.stdout.strip() == "[]"


def _with_toy() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": f"{TOY}:{os.environ.get('PYTHONPATH', Path(__file__).parents[2])}"
    }


def _break(place: Path, source: str) -> None:
    (place / "scaling_broken-1.0.dist-info").mkdir(parents=True)
    (place / "scaling_broken-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: scaling-broken\nVersion: 1.0\n"
    )
    (place / "scaling_broken-1.0.dist-info" / "entry_points.txt").write_text(
        "[scaling.plugins]\nbroken = scaling_broken:PLUGIN\n"
    )
    (place / "scaling_broken.py").write_text(source)


NAMED = "from scaling.config.plugins import Plugin, Position\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "raise RuntimeError('no licence')",
            r"the plugin broken cannot be loaded: RuntimeError: no licence .*scaling-broken 1.0",
        ),
        ("PLUGIN = 3", r"the plugin broken is a int, not a scaling Plugin"),
        (
            NAMED + "PLUGIN = Plugin(positions={'rope': Position(load=int)})",
            r"adds 'rope', a name that is taken",
        ),
        (
            NAMED + "PLUGIN = Plugin(positions={'toy': Position(load=int)})",
            r"two plugins add 'toy'",
        ),
    ],
)
@pytest.mark.usefixtures("installed")
def test_a_plugin_that_cannot_be_used_is_named(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break(tmp_path, source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scaling_broken", raising=False)
    with pytest.raises(ConfigError, match=message):
        compose(["model.n_layers=1"])


def test_the_search_paths_of_other_programs_stay_as_they_are(
    installed: None, tmp_path: Path
) -> None:
    def providers(place: Path) -> list[str]:
        return [element.provider for element in create_config_search_path(str(place)).get_path()]

    assert "scaling.plugins" in providers(conf_dir())
    assert "scaling.plugins" not in providers(tmp_path)
