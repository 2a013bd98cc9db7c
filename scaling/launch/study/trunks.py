"""Which branches of a study may start: a branch waits for its trunk's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scaling.checkpoint.branch import reached
from scaling.studies.trials import Standing, Study, Trial


@dataclass(frozen=True)
class Trunks:
    """The trunks of a study's branches. standings: of all trials, as they are now."""

    study: Study
    standings: Mapping[str, Standing]

    def trunk_of(self, trial: Trial) -> Trial | None:
        if trial.branch is None:
            return None
        return next(
            (other for other in self.study.trials if other.identity == trial.branch.trunk), None
        )

    def may_start(self, trial: Trial) -> bool:
        """A branch waits for its trunk's checkpoint, and no longer than the trunk may still write
        it."""
        trunk = self.trunk_of(trial)
        if trunk is None or trial.branch is None or self.standings[trial.identity].step:
            return True
        return (
            reached(trunk.run_dir, trial.branch.step)
            or self.standings[trunk.identity].state == "finished"
        )

    def failed_under(self, trial: Trial) -> Trial | None:
        """The trunk that will never write the checkpoint that the trial waits for; None where there
        is no such trunk."""
        trunk = self.trunk_of(trial)
        if trunk is None or self.may_start(trial):
            return None
        return trunk if self.standings[trunk.identity].state in ("given up", "damaged") else None
