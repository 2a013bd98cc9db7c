"""What every test starts from: no GPU but for those of one, no account, one thread, and nothing of this machine's user."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
from whole_runs import ONE_WORKER, Run, Workplace, write_text

# Before anything is imported that reads them: tests are the same on every machine, and so are the processes they start.
if not os.environ.get("SCALING_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in [name for name in os.environ if name.startswith(("WANDB_", "RAY_", "HYDRA_"))]:
    del os.environ[_name]

# A busy machine is no failure: how long an example takes is not what these tests are about.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

LONGEST = (
    "test_run_workers.py",
    "test_run_single.py",
    "test_engine_parity.py",
    "test_run_faults.py",
    "test_layout_parity.py",
    "test_run_layouts.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: dealt out last, one of them would keep a single core busy at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture
def double() -> Iterator[None]:
    """Everything computes in float64, so that what is shown holds on every machine (`exact.py`)."""
    from exact import in_double

    with in_double():
        yield


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
