"""A handle on one run directory: its files, its figure, its model and the text it generates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling import markup
from scaling.api.arguments import ROOT, checked, import_pandas, named, report
from scaling.errors import ConfigError

if TYPE_CHECKING:
    import pandas

    from scaling.config.run_config import RunConfig
    from scaling.data.tokenizer.byte_level import Tokenizer
    from scaling.inference.trained import Trained
    from scaling.model import LanguageModel
    from scaling.planner.run_plan import RunPlan
    from scaling.runs.directory import RunDir


def open_run(run: str | Path, root: str | Path = "runs") -> Run:
    """Open a run by its directory, or by its name under `root`, with or without its id.

    Raises ConfigError where there is none. If several match, opens the newest and reports that.
    """
    from scaling.runs.by_name import find_run

    with named("scaling.open_run", ROOT):
        return Run(find_run(str(run), str(root), report))


_NOT_OF_RUN = {
    key: "The run is already open: leave it out." for key in ("from", "run.root", "prompt")
}
"""Options of the commands that `Run.stream` and `Run.fill` set themselves."""


@dataclass(frozen=True)
class Picture:
    """A finished figure. A notebook shows it; `save` writes the PNG."""

    png: bytes = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the PNG atomically; returns its path. Raises RunDirError."""
        from scaling.runs.files import write_atomic

        write_atomic(Path(path), self.png)
        return Path(path)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True)
class Run:
    """One run directory. Every property reads the files again, so a live run can be watched."""

    path: Path
    _opened: dict[tuple[str, int | None], Trained] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def _directory(self) -> RunDir:
        from scaling.runs.directory import RunDir

        return RunDir(self.path)

    @property
    def config(self) -> RunConfig:
        """The configuration that the run began with."""
        return self._directory.read_config()

    @property
    def plan(self) -> RunPlan | None:
        """The plan of the run; None before planning."""
        from scaling.planner.run_plan import RunPlan

        values = self._directory.read_plan()
        return None if values is None else RunPlan.from_dict(values)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Starts, checkpoints, failures and the end, each with `kind`, `time` and `time_s`."""
        return self._directory.read_events()

    @property
    def summary(self) -> dict[str, Any] | None:
        """Final losses, tokens, FLOPs and times; None until the run finishes."""
        return self._directory.read_summary()

    @property
    def state(self) -> str:
        """One of new, begun, running, finished, failed, stopped, preempted and pruned."""
        state = self._directory.state()
        return "running" if state == "begun" and self._directory.is_driven() else state

    @property
    def metrics(self) -> pandas.DataFrame:
        """One row per recorded step, one column per metric; the step is the index, and NaN means
        not measured.

        Records of one step (training, evaluation) share a row, with the totals of the first record.
        """
        from scaling.metrics import names
        from scaling.metrics.record import read_metrics

        pandas = import_pandas("Run.metrics")
        path = self._directory.metrics
        records = read_metrics(path) if path.exists() else []
        if not records:
            return pandas.DataFrame(columns=names.POSITION).set_index(names.STEP)
        return pandas.DataFrame.from_records(records).groupby(names.STEP).first()

    def plot(self) -> Picture:
        """Training and validation loss against tokens, as in loss.png."""
        from scaling.metrics.curve import loss_curve

        baselines = (self.summary or {}).get("baselines") or {}
        return Picture(
            loss_curve(self._directory.metrics, baselines=baselines, title=self.path.name)
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        from scaling.inference.trained import run_tokenizer
        from scaling.weights.source import read_tokenizer_file

        path, config = self._directory.tokenizer, self.config
        return run_tokenizer(read_tokenizer_file(path, config), path, config)

    def model(self, *, step: int | None = None, device: str = "auto") -> LanguageModel:
        """The weights of the newest sound checkpoint, or of `step`, in evaluation mode and fp32.

        device: auto (a GPU where there is one), cpu, cuda or cuda:1.
        """
        return self.trained(step=step, device=device).model

    def trained(self, *, step: int | None = None, device: str = "auto") -> Trained:
        """Model, tokenizer, configuration and step of one checkpoint together; loaded once and
        kept."""
        from scaling.api.trained_handle import find_trained
        from scaling.checkpoint.store import newest_step

        key = (device, newest_step(self._directory.checkpoints) if step is None else step)
        if key not in self._opened:
            word = str(self.path) if step is None else f"{self.path}@{step}"
            self._opened[key] = find_trained(word).open(device=device)
        return self._opened[key]

    def generate(self, prompt: str, **options: Any) -> str:
        """The model's continuation of `prompt`, or its translation.

        options: those of `python -m scaling.generate`, such as temperature=0.8, max_new_tokens=64,
        method="beam", seed=1. Use `stream` for several texts.
        """
        texts = ["".join(pieces) for pieces in self.stream(prompt, **options)]
        if len(texts) > 1:
            fix = "Use run.stream(prompt, n_samples=...), which yields each text in pieces."
            raise ConfigError(f"generate returns one text, not {len(texts)}", "n_samples", fix)
        return texts[0]

    def stream(self, prompt: str, **options: Any) -> Iterator[Iterator[str]]:
        """Yield each text in pieces, as soon as they are made; options as for `generate`."""
        from scaling.inference.options import GenerateOptions
        from scaling.inference.text import texts

        own = {"from": str(self.path), "prompt": prompt}
        with named("Run.stream"):
            asked = checked(GenerateOptions, own, options, _NOT_OF_RUN)
            return texts(self.trained(device=asked.device), asked)

    def fill(self, prompt: str, **options: Any) -> list[list[tuple[str, float]]]:
        """The likeliest tokens with their probabilities, for each `<mask>` of the prompt (bert)."""
        from scaling.inference.options import FillOptions
        from scaling.inference.text import choices

        own = {"from": str(self.path), "prompt": prompt}
        with named("Run.fill"):
            asked = checked(FillOptions, own, options, _NOT_OF_RUN)
            return choices(self.trained(device=asked.device), asked)

    def _repr_html_(self) -> str:
        plan, summary = self.plan, self.summary
        rows = [("state", self.state), ("directory", self.path)]
        if plan is not None:
            from scaling.units import format_count

            rows.append(("parameters", format_count(plan.counts.n_params)))
            rows.append(("steps", f"{plan.n_steps}, {format_count(plan.n_tokens)} tokens"))
        if summary is not None:
            for title, key in (("training", "train_loss"), ("validation", "val_loss")):
                loss = summary.get(key)  # None without held-out data, or where no step was taken
                text = "not measured" if loss is None else f"{loss:.4f} nats per token"
                rows.append((f"{title} loss", text))
        return markup.table((), rows, self.path.name)
