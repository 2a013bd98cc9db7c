"""A built wheel holds conf/, and its commands work from a directory that has nothing of the
checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import scaling
from scaling.runs import provenance

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the build back end that is installed here, so that nothing is fetched."""
    out = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone, unpacked to where a command can import it before the checkout."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(command, check=True, timeout=120)
    return target


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "HOME": str(cwd)}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=60,
    )


def test_every_configuration_and_module_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    configurations = {
        f"scaling/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")
    }
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "scaling").rglob("*.py")}
    assert configurations | modules <= inside
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {
        "scaling",
        "hydra_plugins",
    }


def test_the_distribution_is_ours_and_says_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as inside:
        (metadata,) = (name for name in inside.namelist() if name.endswith(".dist-info/METADATA"))
        lines = inside.read(metadata).decode().splitlines()
        assert any(name.endswith("/LICENSE") for name in inside.namelist())
    assert {
        "Name: scaling-ladder",
        "License-Expression: Apache-2.0",
        "Author: the scaling developers",
    } <= set(lines)


def test_nobody_asks_for_a_distribution_called_scaling() -> None:
    """PyPI has another project of this name, whose version would be reported for ours."""
    assert "scaling" not in provenance.PACKAGES
    assert provenance.package_versions()["scaling"] == scaling.__version__


def test_the_wheel_plans_a_run_in_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    where = run(
        installed,
        tmp_path,
        "-c",
        "import scaling.config.run_config as c; print(c.__file__, c.conf_dir())",
    )
    assert all(part.startswith(str(installed)) for part in where.stdout.split()), where
    done = run(
        installed, tmp_path, "-m", "scaling.run", "model=gpt_1b", "cluster=8xA100", "dry_run=true"
    )
    assert done.returncode == 0, done.stderr
    assert "Plan of gpt_1b" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_one_program_is_installed(installed: Path, tmp_path: Path) -> None:
    assert [path.name for path in (installed / "bin").iterdir()] == ["scaling"]
    done = run(installed, tmp_path, str(installed / "bin" / "scaling"), "help", "status")
    assert done.returncode == 0, done.stderr
    assert "python -m scaling.status" in done.stdout
