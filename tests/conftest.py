"""What every test starts from: no GPU but for those of one, no account, one thread, and nothing of
this machine's user."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.runs import ONE_WORKER, Run, Workplace, write_text

# Before anything is imported that reads them: tests are the same on every machine, and so are the
# processes they start.
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
    "test_parity.py",
    "test_run_faults.py",
    "test_layout_parity.py",
    "test_run_layouts.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: dealt out last, one of them would keep a single core busy at the
    end."""
    items.sort(
        key=lambda item: (
            LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)
        )
    )


@pytest.fixture
def double() -> Iterator[None]:
    """Everything computes in float64, so that what is shown holds on every machine (`exact.py`)."""
    from tests.support.exact import in_double

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


def pytest_report_header(config: pytest.Config) -> str | None:
    """How long this takes, before it begins."""
    if hasattr(config, "workerinput"):
        return None
    last = config.cache.get("scaling/last", None) if getattr(config, "cache", None) else None
    if last is None:
        return (
            "The whole suite takes about 15 minutes of a core, shared by two. "
            "A failure is shown as it comes."
        )
    return (
        f"The last time: {last['tests']} tests in {last['minutes']:.1f} minutes. "
        "A failure is shown as it comes."
    )


class _AsItComes:
    """Shows each failure when it happens, and remembers how long all tests took."""

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._begun_s, self._count, self._told = config, time.monotonic(), 0, False

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        self._tell(len(ids))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._tell(len(session.items))

    def _tell(self, count: int) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if count and not self._told and terminal is not None:
            self._told = True
            terminal.write_line(f"{count} tests")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count += report.when == "call"
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line("")
            terminal.write_sep("_", f"FAILED {report.nodeid}", red=True)
            terminal.write_line(report.longreprtext)

    def pytest_sessionfinish(self) -> None:
        cache = getattr(self._config, "cache", None)  # none with -p no:cacheprovider
        if self._count > 1000 and cache is not None:  # the suite, not a file of it
            minutes = (time.monotonic() - self._begun_s) / 60
            cache.set("scaling/last", {"tests": self._count, "minutes": minutes})


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_AsItComes(config), "as it comes")
