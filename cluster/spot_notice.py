#!/usr/bin/env python3
"""Watch a cloud's notice that this machine will be taken back, and pass it on; ends when it has.

    python cluster/spot_notice.py aws drain            on every node of a Ray cluster: the node is
      drained until the deadline
    python cluster/spot_notice.py gcp signal PID       on a single machine: SIGTERM to the driver of
      a run, PID

The cloud is aws, gcp or azure. Drained nodes are seen by the run within ten seconds, which then
writes a checkpoint and continues without them, or stops with exit code 75. Sources: the clouds'
pages on spot instance interruption notices (instance metadata service, version 2), on preemptible
instances, and on scheduled events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

POLL_S = 1.0
SECONDS_LEFT = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
"""Seconds between notice and end, where the notice names none."""
ADDRESSES = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
    "azure": "http://169.254.169.254",
}


def ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """What the metadata service says; None where it says that there is nothing, or does not
    answer."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None


def aws(address: str) -> datetime | bool:
    """When the machine ends, whether it ends at an unknown time, or False."""
    token = ask(
        f"{address}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT"
    )
    headers = {"X-aws-ec2-metadata-token": token} if token else {}
    found = ask(f"{address}/latest/meta-data/spot/instance-action", headers)
    return (
        datetime.fromisoformat(json.loads(found)["time"].replace("Z", "+00:00")) if found else False
    )


def gcp(address: str) -> datetime | bool:
    return (
        ask(f"{address}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        == "TRUE"
    )


def azure(address: str) -> datetime | bool:
    found = ask(f"{address}/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
    events = (
        [event for event in json.loads(found)["Events"] if event["EventType"] == "Preempt"]
        if found
        else []
    )
    if not events:
        return False
    return parsedate_to_datetime(events[0]["NotBefore"]) if events[0].get("NotBefore") else True


CLOUDS: dict[str, Callable[[str], datetime | bool]] = {"aws": aws, "gcp": gcp, "azure": azure}


def wait_for_notice(cloud: str) -> float:
    """Seconds that are left, once there is a notice."""
    address = os.environ.get("SPOT_METADATA", ADDRESSES[cloud])
    while not (found := CLOUDS[cloud](address)):
        time.sleep(POLL_S)
    if isinstance(found, datetime):
        return max(1.0, (found - datetime.now(UTC)).total_seconds())
    return SECONDS_LEFT[cloud]


def drain(left_s: float) -> int:
    """Tell Ray that this node will go."""
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray raises bare ones, too
        print(f"no Ray runs on this machine, so nothing is drained: {error}", file=sys.stderr)
        return 1
    node, address = ray.get_runtime_context().get_node_id(), ray.get_runtime_context().gcs_address
    ray.shutdown()
    command = [
        "ray",
        "drain-node",
        "--address",
        address,
        "--node-id",
        node,
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot notice",
        "--deadline-remaining-seconds",
        str(int(left_s)),
    ]
    return subprocess.run(command).returncode


def main(words: list[str]) -> int:
    known = (
        words[:1]
        and words[0] in CLOUDS
        and (words[1:] == ["drain"] or (len(words) == 3 and words[1] == "signal"))
    )
    if not known:
        print(__doc__, file=sys.stderr)
        return 2
    left_s = wait_for_notice(words[0])
    print(f"notice: this machine is taken back in {left_s:.0f} s", flush=True)
    if words[1] == "drain":
        return drain(left_s)
    os.kill(int(words[2]), signal.SIGTERM)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
