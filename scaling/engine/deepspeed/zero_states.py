"""Views of a rank's fp32 weights and moments, which DeepSpeed's optimisers keep in flat tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scaling.checkpoint.fragments import MOMENTS


class ZeroStates:
    """Views into the states of a DeepSpeed engine, ZeRO stage 1 to 3. replica: this rank's index
    among those that ZeRO partitions over."""

    def __init__(self, engine: Any, stage: int, replica: int) -> None:
        self._zero, self._stage, self._replica = engine.optimizer, stage, replica

    @property
    def flat_groups(self) -> list[torch.Tensor]:
        """This rank's flat fp32 partitions, on which the base optimiser works."""
        for attribute in (
            "fp32_partitioned_groups_flat",
            "fp32_groups_flat_partition",
            "single_partition_of_fp32_groups",
        ):
            if hasattr(self._zero, attribute):
                groups: list[torch.Tensor] = getattr(self._zero, attribute)
                return groups
        raise AssertionError(f"{type(self._zero).__name__} is no ZeRO optimiser that is known here")

    @property
    def optimizer_step(self) -> int:
        """Number of updates that the moments have seen."""
        states = self._zero.optimizer.state
        steps = {
            int(states[flat]["step"]) for flat in self.flat_groups if "step" in states.get(flat, {})
        }
        assert len(steps) <= 1, steps
        return steps.pop() if steps else 0

    @optimizer_step.setter
    def optimizer_step(self, step: int) -> None:
        for flat in self.flat_groups:
            self._zero.optimizer.state[flat]["step"] = self._step_tensor(flat, step)

    def _step_tensor(self, flat: torch.Tensor, step: int) -> torch.Tensor:
        # The fused kernel keeps its count on the device, the others on the host.
        fused = bool(self._zero.optimizer.param_groups[0].get("fused"))
        return torch.tensor(float(step), device=flat.device if fused else "cpu")

    def views(self, param: nn.Parameter) -> tuple[int, dict[str, torch.Tensor]] | None:
        """The start of this rank's run of `param`, and fp32 views of it: master weights and
        moments. None if the rank holds nothing of it."""
        if self._stage == 3:
            flat, offset, start, numel = self._stage_3_run(param)
        else:
            mapping = param._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:
                return None
            flat = self.flat_groups[mapping.param_group_index]
            offset, start, numel = (
                mapping.hp_fragment_address.start,
                mapping.lp_fragment_address.start,
                mapping.lp_fragment_address.numel,
            )
        if numel <= 0:
            return None
        state = self._zero.optimizer.state[flat]
        # The optimiser makes its states at the first update; a checkpoint may come before it.
        if not state:
            state.update(
                {kind: torch.zeros_like(flat) for kind in MOMENTS}, step=self._step_tensor(flat, 0)
            )
        return start, {"param": flat.data.narrow(0, offset, numel)} | {
            kind: state[kind].narrow(0, offset, numel) for kind in MOMENTS
        }

    def _stage_3_run(self, param: nn.Parameter) -> tuple[torch.Tensor, int, int, int]:
        zero = self._zero
        group, offset, width = zero.grad_position[zero.get_param_id(param)]
        start = self._replica * width
        return (
            zero.fp32_partitioned_groups_flat[group],
            int(offset),
            start,
            min(width, param.ds_numel - start),  # type: ignore[attr-defined]
        )

    def written(self, param: nn.Parameter, master: torch.Tensor) -> None:
        """Copy this rank's run of master weights into the weights that the model computes with."""
        if self._stage == 3:
            own: torch.Tensor = vars(param)["ds_tensor"]
            own.data.view(-1)[: master.numel()].copy_(master)

    def all_written(self) -> None:
        """Do the same for all parameters, where DeepSpeed copies them together."""
        if self._stage != 3:
            self._zero.update_lp_params()
