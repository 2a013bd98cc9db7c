"""cluster=NxMxGPU: every part of the name is known, or the name is refused with those there are."""

import pytest

from scaling.composition.compose import compose
from scaling.config.cluster import MOST_DEVICES
from scaling.config.cluster_names import with_named_clusters
from scaling.errors import ConfigError
from scaling.planner.measured.table import _sheet


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("4xA100-SXM-64GB", r"no sheet has 64 GB.*\n.*There are A100-40GB, A100-80GB;"),
        ("8xH100-94GB", r"no sheet has 94 GB.*\n.*There is H100-80GB;"),
        ("8xT4-32GB", r"no sheet has 32 GB.*\n.*There is T4-16GB;"),
        ("8xA100-foo", r"nothing is known of 'foo' behind A100"),
        ("8xA100-spott", r"nothing is known of 'spott'"),
        ("8xA100-40", r"nothing is known of '40'"),
        ("8xH100-NVL", r"nothing is known of 'nvl'"),
        ("8xH100-PCIe", r"nothing is known of 'pcie'"),
        ("1xA100-SXM4-80GB-MIG-1g.10gb", r"nothing is known of 'mig-1g.10gb'"),
        ("1xA100-80GB-40GB", r"nothing is known of '80GB-40GB'"),
        ("8xA101", r"gpu='A101' is not in the hardware table"),
        ("0x8xA100", r"has no devices"),
        ("8x0xA100", r"has no devices"),
        ("99999999x8xA100", r"has 799,999,992 devices.*\n.*at most 1,048,576"),
        ("9" * 5000 + "xA100", r"has 5005 characters"),
        ("8x" + "A" * 400, r"has 402 characters"),
    ],
)
def test_a_name_of_unknown_parts_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_named_clusters([f"cluster={name}"])


@pytest.mark.parametrize(
    ("name", "device", "spot"),
    [
        ("8xA100-SPOT", "A100-80GB", True),
        ("2x8xA100-40GB-Spot", "A100-40GB", True),
        ("4x8xh100-sxm5", "H100-80GB", False),
        ("8xA100-80G", "A100-80GB", False),
        ("8xNVIDIA H100 80GB HBM3", "H100-80GB", False),
        ("4xT4-PCIe", "T4-16GB", False),
        ("8xRTX-4090", "RTX4090-24GB", False),
    ],
)
def test_a_name_is_known_however_it_is_written(name: str, device: str, spot: bool) -> None:
    words = with_named_clusters([f"cluster={name}"])
    assert f"cluster/device={device}" in words
    assert ("cluster.preemptible=true" in words) == spot


def test_a_name_composes() -> None:
    cluster = compose(["cluster=2x8xA100-SPOT", "model=gpt_1b"]).cluster
    assert (cluster.name, cluster.n_nodes, cluster.devices_per_node, cluster.preemptible) == (
        "2x8xA100-SPOT",
        2,
        8,
        True,
    )


def test_a_cluster_larger_than_any_is_refused() -> None:
    with pytest.raises(ConfigError, match="1,048,584 devices, and at most 1,048,576 go"):
        compose(["cluster=8xA100", f"cluster.n_nodes={MOST_DEVICES // 8 + 1}"])
    with pytest.raises(ConfigError, match="threads_per_worker=100000"):
        compose(["cluster.threads_per_worker=100000"])


def test_a_table_of_measurements_may_say_another_memory() -> None:
    named = {
        words: _sheet(*words)["name"]
        for words in (("A100-PCIe", 40.0), ("H100 NVL", 94.0), ("A100-SXM4", 64.0))
    }
    assert list(named.values()) == ["A100-40GB", "H100-80GB", "A100-80GB"]
