"""What is asked of a machine: GPUs through a made-up driver, memory and cores through a made-up
/proc and /sys."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scaling.config.hardware import known_gpu
from scaling.errors import ConfigError
from scaling.planner.machines.detect import (
    check_available,
    memory_limit_bytes,
    n_devices,
    resolve_cluster,
    usable_cores,
    visible_gpus,
)
from scaling.planner.run_plan import make_plan
from tests.support.configs import composed

A100 = "NVIDIA A100-SXM4-80GB"


class FakeDriver(SimpleNamespace):
    """The part of pynvml that is used; `gpus` are names, `fails` an error of nvmlInit."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_DriverNotLoaded(NVMLError):
        pass

    def __init__(self, gpus: list[str], fails: type[Exception] | None = None) -> None:
        super().__init__(gpus=gpus, fails=fails)

    def nvmlInit(self) -> None:
        if self.fails is not None:
            raise self.fails("no answer")

    def nvmlShutdown(self) -> None:
        self.fails = None

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, handle: int) -> str:
        return str(self.gpus[handle])

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=85_899_345_920)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts GPUs of these names into this machine."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*names: str, fails: type[Exception] | None = None) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", FakeDriver(list(names), fails))

    return install


def local(*overrides: str) -> Any:
    return composed("cluster=local", *overrides)


def test_without_a_driver_the_cpu_works(driver: Any) -> None:
    driver(fails=FakeDriver.NVMLError_LibraryNotFound)
    config = resolve_cluster(local())
    device = config.cluster.device
    assert n_devices(config) == min(2, usable_cores())
    assert device.kind == "cpu"
    assert device.name not in ("", "this machine")
    assert device.memory_gb == pytest.approx(memory_limit_bytes() / n_devices(config) / 1e9)
    assert device.peak_tflops_bf16 is None
    assert resolve_cluster(config) is config
    check_available(config)


def test_what_is_set_wins(driver: Any) -> None:
    driver(fails=FakeDriver.NVMLError_LibraryNotFound)
    config = resolve_cluster(
        local(
            "cluster.devices_per_node=4",
            "cluster.device.memory_gb=1.5",
            "cluster.device.peak_tflops_fp32=0.1",
        )
    )
    device = config.cluster.device
    assert (n_devices(config), device.memory_gb, device.peak_tflops_fp32) == (4, 1.5, 0.1)
    assert make_plan(config).time is None  # two links are unknown, though the peak is not
    check_available(config)


def test_known_gpus_bring_their_data_sheet(driver: Any) -> None:
    driver(A100, A100, A100)
    config = resolve_cluster(local())
    device = config.cluster.device
    assert (n_devices(config), device.kind, device.name, device.peak_tflops_bf16) == (
        3,
        "gpu",
        "A100-80GB",
        312,
    )
    assert device.memory_gb == pytest.approx(85.899, rel=1e-4)
    assert config.cluster.intra_node_gb_per_s == 300
    assert config.dtype == "bf16"
    check_available(config)


def test_data_sheets_are_those_of_the_clusters() -> None:
    for driver_name, cluster in (
        ("NVIDIA H100 80GB HBM3", "8xH100"),
        ("NVIDIA H200", "8xH200"),
        ("NVIDIA A100-SXM4-40GB", "8xA100-40GB"),
        (A100, "8xA100"),
    ):
        known, described = known_gpu(driver_name), composed(f"cluster={cluster}").cluster
        assert known is not None
        assert known.device == described.device.model_dump()
        assert known.nvlink_gb_per_s == described.intra_node_gb_per_s
    assert known_gpu("NVIDIA H100 PCIe") is None


def test_an_unknown_gpu_has_no_peak(driver: Any) -> None:
    driver("NVIDIA Imaginary 1")
    config = resolve_cluster(local())
    device = config.cluster.device
    assert (device.kind, device.name, device.peak_tflops_bf16) == (
        "gpu",
        "NVIDIA Imaginary 1",
        None,
    )
    assert make_plan(config).time is None


@pytest.mark.parametrize(
    ("visible", "n"),
    [(None, 3), ("0", 1), ("2,0", 2), ("GPU-1", 1), ("", 0), ("-1", 0), ("0,7,1", 1)],
)
def test_cuda_visible_devices_is_obeyed(
    driver: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None, n: int
) -> None:
    driver(A100, A100, A100)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(visible_gpus()) == n


def test_different_gpus_are_refused(driver: Any) -> None:
    driver(A100, "NVIDIA H200")
    with pytest.raises(
        ConfigError, match="different kinds: NVIDIA A100-SXM4-80GB, NVIDIA H200"
    ) as caught:
        resolve_cluster(local())
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value)


def test_a_driver_that_does_not_answer_is_an_error(driver: Any) -> None:
    driver(fails=FakeDriver.NVMLError)
    with pytest.raises(ConfigError, match="does not answer: no answer"):
        visible_gpus()


def test_a_cluster_that_is_not_here_is_refused_before_launch(driver: Any) -> None:
    driver(fails=FakeDriver.NVMLError_LibraryNotFound)
    config = resolve_cluster(composed("model=gpt_1b", "cluster=8xA100"))
    make_plan(config)
    with pytest.raises(ConfigError) as caught:
        check_available(config)
    text = str(caught.value)
    assert "cluster=8xA100 wants 8 x A100-80GB, this machine has" in text
    assert "(no NVIDIA GPU)" in text
    for way_out in ("dry_run=true", "cluster=local", "cluster=existing cluster.address="):
        assert way_out in text


@pytest.mark.parametrize(
    ("cluster", "gpus", "text"),
    [
        ("8xA100", 7, "wants 8 x A100-80GB, this machine has 7 x A100-80GB"),
        ("8xH100", 8, "wants 8 x H100-80GB, this machine has 8 x A100-80GB"),
        ("4x8xA100", 32, "wants 32 x A100-80GB in 4 machines, this machine has 32 x A100-80GB"),
    ],
)
def test_other_gpus_are_refused(driver: Any, cluster: str, gpus: int, text: str) -> None:
    driver(*[A100] * gpus)
    with pytest.raises(ConfigError, match=text):
        check_available(composed(f"cluster={cluster}"))


def test_the_right_gpus_are_accepted(driver: Any) -> None:
    driver(*[A100] * 8)
    check_available(composed("cluster=8xA100"))
    check_available(composed("cluster=1xA100"))


def test_an_existing_cluster_must_be_described(driver: Any) -> None:
    driver(A100)
    with pytest.raises(ConfigError, match="cannot ask what they are made of") as caught:
        resolve_cluster(composed("cluster=existing"))
    assert "cluster/device=H100-80GB" in str(caught.value)
    with pytest.raises(ConfigError, match="devices_per_node is null"):
        resolve_cluster(composed("cluster=existing", "cluster/device=H100-80GB"))
    config = resolve_cluster(
        composed("cluster=existing", "cluster/device=H100-80GB", "cluster.devices_per_node=4")
    )
    assert n_devices(config) == 4
    check_available(config)


def _machine(root: Path, groups: str, limits: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:  16000 kB\nMemFree: 1 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for path, limit in limits.items():
        (root / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / path).write_text(limit + "\n")
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, 16_384_000),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "9000000"}, 9_000_000),
        ("0::/a\n", {"a/memory.max": "99000000000"}, 16_384_000),
        ("0::/outside\n", {"memory.max": "7000000"}, 7_000_000),
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "8000000"}, 8_000_000),
        (
            "4:cpu,memory:/job\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712"},
            16_384_000,
        ),
    ],
)
def test_memory_is_the_least_of_machine_and_groups(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int
) -> None:
    assert memory_limit_bytes(_machine(tmp_path, groups, limits)) == expected
