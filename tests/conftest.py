"""What every test starts from: no GPU, no account, one thread, and nothing of this machine's user."""

from __future__ import annotations

import os

import pytest
from whole_runs import ONE_WORKER, Run, Workplace, write_text

# Before anything is imported that reads them: tests are the same on every machine, and so are the processes they start.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in [name for name in os.environ if name.startswith(("WANDB_", "RAY_", "HYDRA_"))]:
    del os.environ[_name]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty home directory, for processes that look into it."""
    return str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, home: str) -> Workplace:
    """A corpus of text files, prepared by the first run that wants it."""
    root = tmp_path_factory.mktemp("work")
    return Workplace(root, write_text(root / "text"), home)


@pytest.fixture(scope="session")
def single(workplace: Workplace) -> Run:
    """An unbroken run of one worker in the driver's own process, which others are held against."""
    return workplace.finish(*ONE_WORKER, root=workplace.root / "single")
