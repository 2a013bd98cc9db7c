"""The reference engine, plain PyTorch on one device: the oracle of every parity test, and the fast
path for a single device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from scaling.batch import Batch
from scaling.checkpoint.fragments import MOMENTS, Fragment, FragmentReader, Snapshot
from scaling.config.run_config import RunConfig
from scaling.engine.base import EvalResult, Limits, StepResult
from scaling.engine.optimizer import build_optimizer, set_rate
from scaling.model import LanguageModel, build_model, initialise
from scaling.parallel.part import part_of
from scaling.planner.layout import Layout
from scaling.weights.initial import given_weights


class ReferenceEngine:
    """Keeps fp32 weights; computes products in bf16 under autocast where the run asks for it."""

    def __init__(self, config: RunConfig, layout: Layout, device: torch.device) -> None:
        self.device = device
        self.model = build_model(config, device=device)
        initialise(self.model, config.train.seed, given_weights(config))
        self.model.set_activation_checkpointing(layout.activation_checkpointing)
        if config.train.compile:
            self.model.compile_blocks()
        self._optimizer = build_optimizer(config, self.model)
        self._parameters = list(self.model.parameters())
        self._grad_clip = config.optim.grad_clip
        self._autocast_bf16 = config.dtype == "bf16"

    def _precision(self) -> AbstractContextManager[object]:
        return (
            torch.autocast(self.device.type, dtype=torch.bfloat16)
            if self._autocast_bf16
            else nullcontext()
        )

    def step(
        self, micro_batches: Sequence[Batch], lr: float, limits: Limits | None = None
    ) -> StepResult:
        self.model.train()
        n_targets = sum(batch.n_targets for batch in micro_batches)
        loss = torch.zeros((), device=self.device)
        for batch in micro_batches:
            batch = batch.to(self.device)
            with self._precision():
                nats, _, objective = self.model.loss(batch)
            # The count is the global batch's: gradients of micro-batches add up to the mean's.
            (objective / n_targets).backward()
            loss += nats.detach() / n_targets
        return self._update(loss, lr, limits)

    def _update(self, loss: torch.Tensor, lr: float, limits: Limits | None) -> StepResult:
        """Clip the gradients, and update the weights unless the step exceeds a limit."""
        grad_norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self._parameters if p.grad is not None]
        )
        if self._grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._grad_clip, grad_norm)
        set_rate(self._optimizer.param_groups, lr)
        # a loss that is no number may have finite gradients, and the guard reports its step as
        # left out
        bad = ~(torch.isfinite(grad_norm) & torch.isfinite(loss))
        if limits is not None:
            bad |= limits.exceeded(loss, grad_norm)
        skipped = bad.float()
        # As GradScaler does: where `found_inf` is 1 the fused kernel changes nothing, so the host
        # need not wait for the device to decide.
        self._optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, grad_norm, skipped)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> EvalResult:
        self.model.eval()
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        n_targets = 0
        for batch in batches:
            batch = batch.to(self.device)
            with self._precision():
                batch_nats, count, _ = self.model.loss(batch)
            nats += batch_nats.double()
            n_targets += int(count)
        return EvalResult(float(nats), n_targets)

    def whole_model(self) -> LanguageModel:
        return self.model

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot:
        state = self._optimizer.state

        def fragments() -> Iterator[Fragment]:
            for name, param in self.model.named_parameters():
                moments = {
                    k: state[param][k] if param in state else torch.zeros_like(param)
                    for k in MOMENTS
                }
                yield Fragment(name, part_of(param), 0, {"param": param, **moments})

        return Snapshot.of(fragments(), optimizer_step=self._optimizer_step(), reuse=reuse)

    def _optimizer_step(self) -> int:
        # Adam makes its states at the first update.
        return max((int(moments["step"]) for moments in self._optimizer.state.values()), default=0)

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        reader = FragmentReader(directory)
        named = dict(self.model.named_parameters())
        reader.check({name: tuple(p.shape) for name, p in named.items()})
        fused = bool(self._optimizer.param_groups[0].get("fused"))
        self._optimizer.state.clear()
        for name, param in named.items():
            param.copy_(reader.read("param", name, part_of(param), 0, param.numel()).view_as(param))
            # Without an update Adam has no states, and makes them itself.
            if reader.optimizer_step:
                self._optimizer.state[param] = {
                    "step": torch.tensor(
                        float(reader.optimizer_step), device=self.device if fused else "cpu"
                    ),
                    **{
                        k: reader.read(k, name, part_of(param), 0, param.numel())
                        .view_as(param)
                        .to(self.device)
                        for k in MOMENTS
                    },
                }

    def close(self) -> None:
        """Nothing stays with the process."""
