"""Errors a user can act on: what is wrong, where it was set, what would work.

Each class carries the exit code of the process it ends: 2 for a wrong configuration or plan,
75 for a run stopped by preemption (the same command continues it), 1 for anything else.
"""

from __future__ import annotations

from scaling.redaction import redact
from scaling.screen import visible


def _shown(text: str) -> str:
    """The text without secrets, and without what would make a terminal do things."""
    return visible(redact(text))


EXIT_FINISHED, EXIT_FAILED, EXIT_CONFIG, EXIT_STOPPED = 0, 1, 2, 75


class ScalingError(Exception):
    """Base of every error that is the user's to mend. `fix` says what would work, `where` who set
    it; none of them a secret."""

    exit_code = 1

    def __init__(self, what: str, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = _shown(what), where and _shown(where), fix and _shown(fix)
        super().__init__(self.what, self.where, self.fix)

    def __str__(self) -> str:
        text = self.what + (f" ({self.where})" if self.where else "") + "."
        return text + (f"\n  {self.fix}" if self.fix else "")


class ConfigError(ScalingError):
    """A key, a value or a combination of values that no run can be made of."""

    exit_code = 2


class PlanError(ScalingError):
    """No legal layout, or an explicit one that breaks a rule of the model, the cluster or the
    engine."""

    exit_code = 2


class DataError(ScalingError):
    """A corpus, shard or tokenizer that is missing, damaged or not what its index says."""


class CheckpointError(ScalingError):
    """A checkpoint that is absent, damaged or belongs to another run."""


class SupersededError(CheckpointError):
    """A group of workers whose run another group has taken over since."""


class DivergedError(ScalingError):
    """A loss or gradients that are not finite, or a spike, where the policy says to stop."""


class RunDirError(ScalingError):
    """A run directory that cannot be used: not writable, full, or held by another driver."""


class LaunchError(ScalingError):
    """Workers that could not be started, or that died more often than the failure policy allows."""
