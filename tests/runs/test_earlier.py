"""A run directory of an earlier version: before_cp/ was written by the last version whose layouts
said sp for context parallel."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError
from scaling.inference.trained import open_trained
from scaling.laws.recommend import base_of
from scaling.planner.run_plan import RunPlan
from scaling.runs.directory import RunDir
from scaling.studies.generators import changed
from scaling.weights.source import find_source

BEFORE = Path(__file__).parent / "before_cp"


def test_an_earlier_run_is_read():
    written = json.loads((BEFORE / "plan.json").read_text())
    assert written["layout"]["sp"] == 1
    written["layout"]["sp"] = 2
    assert RunPlan.from_dict(written).layout.cp == 2
    layout = RunDir(BEFORE).read_config().layout
    assert (layout.tp, layout.cp, layout.cp_attention) == (1, 1, "ulysses")
    trained = open_trained(find_source(str(BEFORE), "runs", pytest.fail), torch.device("cpu"))
    assert trained.step == 4


def test_a_stored_analysis_of_an_earlier_version_is_read():
    base = yaml.safe_load((BEFORE / "config.yaml").read_text())
    assert base["layout"]["sp"] == 1
    found = base_of({"base": base})
    assert found is not None
    assert found.layout.cp == 1


@pytest.mark.parametrize("earlier", ["sp", "sp_attention"])
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_the_earlier_key_is_refused_and_the_new_one_named(prefix, earlier):
    new = f"layout.{earlier.replace('sp', 'cp')}"
    with pytest.raises(ConfigError, match=f"layout.{earlier} is called {new} now") as error:
        compose(["layout=manual", f"{prefix}layout.{earlier}=2"])
    assert f"from the command line: {prefix}layout.{earlier}=2" in str(error.value)


def test_the_earlier_key_is_refused_in_a_study():
    with pytest.raises(ConfigError, match=r"layout\.sp is called layout\.cp now"):
        changed(compose(["layout=manual"]), {"layout.sp": 2})


def test_only_what_was_recorded_may_use_the_earlier_key():
    tree = compose(["layout=manual"]).model_dump()
    tree["layout"]["sp"] = tree["layout"].pop("cp")
    with pytest.raises(ValueError, match=r"layout\.sp"):
        RunConfig.model_validate(tree)
