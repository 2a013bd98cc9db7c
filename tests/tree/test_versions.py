"""The versions that pyproject.toml lets pip take, beside those that constraints.txt pins and the
tests run with."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import scaling

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in (
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split()
    )
}
REQUIREMENTS = [
    Requirement(text)
    for text in (
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    )
]
PRIVATE = {"torch": 2, "deepspeed": 2, "ray": 2, "hydra-core": 2, "omegaconf": 2}
"""Libraries of which private parts are relied on, and how many numbers of the version stay the
same."""


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_a_requirement_takes_the_pinned_version_and_ends_before_the_next_one_that_may_break(
    requirement: Requirement,
) -> None:
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin), f"constraints.txt pins {pin}"
    same = PRIVATE.get(requirement.name, 1 if pin.major else 2)
    if requirement.name == "safetensors" or requirement.name == "wandb":
        same = 1  # before 1.0, but with public interfaces that have not changed for years
    numbers = [*pin.release[:same]]
    numbers[-1] += 1
    later = Version(".".join(map(str, [*numbers, 0])))
    assert not requirement.specifier.contains(later), f"{later} is taken, which nobody has tried"


def test_the_installed_versions_are_the_pinned_ones() -> None:
    for requirement in REQUIREMENTS:
        name = canonicalize_name(requirement.name)
        try:
            installed = Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed
        assert installed.release == PINS[name].release, name


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == scaling.__version__
    assert citation["license"] == PROJECT["license"]
    assert f"## [{scaling.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
