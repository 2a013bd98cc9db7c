"""What `import scaling` offers to notebooks and scripts; the commands call the same functions.

Every import stands where it is used: composing, planning and fitting need neither torch nor Ray nor
DeepSpeed, and pandas is loaded by `Run.metrics` and `Study.results` alone.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from scaling import markup
from scaling.errors import ConfigError
from scaling.screen import visible

if TYPE_CHECKING:
    import pandas

    from scaling.config.run_config import RunConfig
    from scaling.data.tokenizer.byte_level import Tokenizer
    from scaling.inference.trained import Trained
    from scaling.laws.analysis import Analysis
    from scaling.laws.answer import Prediction
    from scaling.laws.forecast import Law
    from scaling.model import LanguageModel
    from scaling.planner.run_plan import RunPlan
    from scaling.runs.directory import RunDir


# Configuration, plan, run.


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of these overrides, as after `python -m scaling.run`: GROUP=OPTION, KEY=VALUE.

    Raises ConfigError, which names the key, the value and what would work.
    """
    from scaling.composition.compose import compose as composed

    if isinstance(overrides, str):
        fix = f"Pass a list of words: scaling.compose({overrides.split()!r})."
        raise ConfigError("overrides is one text", "scaling.compose", fix)
    return composed(overrides)


def make_plan(config: RunConfig) -> RunPlan:
    """What would be trained, how, and what it is predicted to take. Starts nothing.

    Raises PlanError where no legal layout fits.
    """
    from scaling.planner.machines.detect import resolve_cluster
    from scaling.planner.measured.calibrate import scale_of
    from scaling.planner.run_plan import make_plan as planned

    config = resolve_cluster(config)
    return planned(config, time_scale=scale_of(config))


def start(config: RunConfig) -> Run:
    """Train `config` from here until it ends; returns its run, also where it was stopped early.

    The same call continues a run that was stopped. Interrupting the kernel (Ctrl-C) writes a
    checkpoint and stops. Raises ScalingError, as `python -m scaling.run` prints it.
    """
    from scaling.launch.run import drive
    from scaling.runs.directory import RunDir

    if config.dry_run:
        fix = "Use scaling.make_plan(config), or compose without dry_run=true."
        raise ConfigError("dry_run=true starts nothing", "scaling.start", fix)
    if config.study.kind != "none":
        fix = f"Run python -m scaling.run -m study={config.study.kind}, then scaling.open_study."
        raise ConfigError(f"study={config.study.kind} makes many runs", "scaling.start", fix)
    drive(config)
    return Run(RunDir.for_config(config).path)


def open_run(run: str | Path, root: str | Path = "runs") -> Run:
    """A run by its directory, or by its name under `root`, without its id where that is enough.

    Raises ConfigError where there is none; of several, opens the newest and reports that.
    """
    from scaling.runs.by_name import find_run

    return Run(find_run(str(run), str(root), _report))


def open_study(directory: str | Path) -> Study:
    """The study, or any directory of runs, at `directory`. Raises ConfigError where there is none."""
    path = Path(directory).expanduser().absolute()
    if not path.is_dir():
        fix = "Give the directory that holds the study's runs: RUN_ROOT/STUDY_NAME."
        raise ConfigError(f"there is no directory {path}", "scaling.open_study", fix)
    return Study(path)


@dataclass(frozen=True)
class Picture:
    """A drawn figure. A notebook shows it; `save` writes the PNG."""

    png: bytes = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the PNG, completely or not at all. Raises RunDirError."""
        from scaling.runs.files import write_atomic

        write_atomic(Path(path), self.png)
        return Path(path)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True)
class Run:
    """One run directory. Every property reads the files as they are now, so a live run can be watched."""

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
        """The plan that the run was given; None before there is one."""
        from scaling.planner.run_plan import RunPlan

        values = self._directory.read_plan()
        return None if values is None else RunPlan.from_dict(values)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Starts, checkpoints, failures and the end, each with `kind`, `time` and `time_s`."""
        return self._directory.read_events()

    @property
    def summary(self) -> dict[str, Any] | None:
        """Final losses, tokens, FLOPs and times; None until the run has finished."""
        return self._directory.read_summary()

    @property
    def state(self) -> str:
        """new, begun, running, finished, failed, stopped, preempted or pruned."""
        state = self._directory.state()
        return "running" if state == "begun" and self._directory.is_driven() else state

    @property
    def metrics(self) -> pandas.DataFrame:
        """One row per recorded step, the step as its index, one column per metric; NaN: not measured.

        Records of one step (training, evaluation) share a row, whose totals are the first record's.
        """
        from scaling.metrics import names
        from scaling.metrics.record import read_metrics

        pandas = _pandas("Run.metrics")
        path = self._directory.metrics
        records = read_metrics(path) if path.exists() else []
        if not records:
            return pandas.DataFrame(columns=names.POSITION).set_index(names.STEP)
        return pandas.DataFrame.from_records(records).groupby(names.STEP).first()

    def plot(self) -> Picture:
        """Training and validation loss against tokens, as in the run's own picture."""
        from scaling.metrics.curve import loss_curve

        baselines = (self.summary or {}).get("baselines") or {}
        return Picture(
            loss_curve(self._directory.metrics, baselines=baselines, title=self.path.name)
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run was trained with."""
        from scaling.inference.trained import read_tokenizer

        return read_tokenizer(self._directory, self.config)

    def model(self, *, step: int | None = None, device: str = "auto") -> LanguageModel:
        """The weights of the newest sound checkpoint, or of `step`, in evaluation mode in fp32.

        device: auto (a GPU where there is one), cpu, cuda or cuda:1.
        """
        return self.trained(step=step, device=device).model

    def trained(self, *, step: int | None = None, device: str = "auto") -> Trained:
        """Model, tokenizer, configuration and step of one checkpoint together; loaded once."""
        from scaling.checkpoint.store import newest_step
        from scaling.inference.trained import find_device, open_trained

        key = (device, newest_step(self._directory.checkpoints) if step is None else step)
        if key not in self._opened:
            opened = open_trained(self.path, find_device(device), _report, step=step)
            self._opened[key] = opened
        return self._opened[key]

    def generate(self, prompt: str, **options: Any) -> str:
        """The text that the model continues `prompt` with, or its translation.

        options: those of `python -m scaling.generate`, such as temperature=0.8, max_new_tokens=64,
        method="beam", seed=1. Several texts: `stream`.
        """
        texts = ["".join(pieces) for pieces in self.stream(prompt, **options)]
        if len(texts) > 1:
            fix = "Use run.stream(prompt, n_samples=...), which yields each text in pieces."
            raise ConfigError(f"generate returns one text, not {len(texts)}", "n_samples", fix)
        return texts[0]

    def stream(self, prompt: str, **options: Any) -> Iterator[Iterator[str]]:
        """Each text in pieces, as soon as they are made; options as for `generate`."""
        from scaling.inference.options import GenerateOptions
        from scaling.inference.text import texts

        asked = _checked(GenerateOptions, {"run": str(self.path), "prompt": prompt, **options})
        return texts(self.trained(device=asked.device), asked)

    def fill(self, prompt: str, **options: Any) -> list[list[tuple[str, float]]]:
        """For each `<mask>` of the prompt its likeliest tokens with their probabilities (bert)."""
        from scaling.inference.options import FillOptions
        from scaling.inference.text import choices

        asked = _checked(FillOptions, {"run": str(self.path), "prompt": prompt, **options})
        return choices(self.trained(device=asked.device), asked)

    def _repr_html_(self) -> str:
        plan, summary = self.plan, self.summary
        rows = [("state", self.state), ("directory", self.path)]
        if plan is not None:
            from scaling.units import format_count

            rows.append(("parameters", format_count(plan.counts.n_params)))
            rows.append(("steps", f"{plan.n_steps}, {format_count(plan.n_tokens)} tokens"))
        if summary is not None:
            rows.append(("training loss", f"{summary['train_loss']:.4f} nats per token"))
            rows.append(("validation loss", f"{summary['val_loss']:.4f} nats per token"))
        return markup.table((), rows, self.path.name)


@dataclass(frozen=True)
class Study:
    """A directory of runs and their results."""

    path: Path

    @property
    def runs(self) -> list[Run]:
        """The runs that have begun, by name."""
        from scaling.runs.by_name import find_runs

        return [Run(path) for path in find_runs(self.path)]

    @property
    def rows(self) -> list[dict[str, str]]:
        """The lines of results.csv as text, one per trial. Raises ConfigError where there are none."""
        from scaling.laws.from_runs import RESULTS

        try:
            with (self.path / RESULTS).open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except OSError as error:
            fix = "The study's driver writes it when a trial ends; .runs lists the runs themselves."
            what = f"{self.path} has no {RESULTS}"
            raise ConfigError(what, "Study.results", fix) from error

    @property
    def results(self) -> pandas.DataFrame:
        """One row per trial: its state, the keys it varies, N, D, C, losses and times."""
        from scaling.laws.from_runs import RESULTS

        pandas = _pandas("Study.results")
        self.rows  # noqa: B018 - the error of a missing file
        return pandas.read_csv(self.path / RESULTS)

    def _repr_html_(self) -> str:
        try:
            rows = self.rows
        except ConfigError:
            runs = self.runs
            return markup.table(
                ("run", "state"), ((r.path.name, r.state) for r in runs), self.path.name
            )
        head = list(rows[0]) if rows else []
        return markup.table(head, ([*row.values()] for row in rows), self.path.name)


# Laws.


@runtime_checkable
class Frame(Protocol):
    """A table that lists its rows, such as a pandas DataFrame."""

    def to_dict(self, orient: Any = ..., /) -> Any: ...


@dataclass(frozen=True)
class FittedLaws:
    """Scaling laws fitted to one table of runs: parametric forms, IsoFLOP curves, the envelope.

    analysis: everything that was fitted, with draws, residuals and what was refused.
    """

    analysis: Analysis
    title: str

    @property
    def forms(self) -> list[str]:
        """Names of the fitted forms; predictions use the first unless told otherwise."""
        return list(self.analysis.forms)

    def law(self, form: str | None = None) -> Law:
        """One form as predictions use it. Raises ConfigError for a form that was not fitted."""
        name = form or next(iter(self.analysis.forms), None)
        if name not in self.analysis.forms:
            fix = f"There are: {', '.join(self.forms) or 'none'}."
            raise ConfigError(f"form={name} was not fitted", "FittedLaws.law", fix)
        return self.analysis.forms[name].law

    @property
    def parameters(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        """By form and parameter: the value and the 95 % interval by bootstrap over runs."""
        from scaling.laws.intervals import percentile_interval

        found = {}
        for name, fitted in self.analysis.forms.items():
            drawn = fitted.fit.form.reported(fitted.bootstrap.theta)
            found[name] = {
                key: (value, *percentile_interval(drawn[key]))
                for key, value in fitted.fit.parameters.items()
            }
        return found

    @property
    def figures(self) -> dict[str, Picture]:
        """The report's figures by name."""
        from scaling.laws.figures import draw_all

        return {name: Picture(png) for name, png, _ in draw_all(self.analysis)}

    def write_report(self, directory: str | Path) -> Path:
        """Write report.html, its figures and fit.json; returns the page. Raises RunDirError."""
        from scaling.laws.report import write_report

        return write_report(self.analysis, Path(directory).expanduser(), title=self.title)[-1]

    def _repr_html_(self) -> str:
        rows = [
            (name, key, f"{value:.6g}", f"{low:.4g} to {high:.4g}")
            for name, values in self.parameters.items()
            for key, (value, low, high) in values.items()
        ]
        head = ("form", "parameter", "value", "95 % interval")
        return markup.table(head, rows, f"{self.title}: {len(self.analysis.points)} points")


def fit_law(
    source: Study | Frame | Iterable[Mapping[str, Any]] | str | Path, **options: Any
) -> FittedLaws:
    """Fit scaling laws to a study, a CSV file, a pandas frame or a list of mappings.

    options: those of `python -m scaling.fit`. A table needs the columns of N, D or C by name:
    n="params", d="tokens", loss="val_loss"; form=["chinchilla"] fits that form alone.
    Raises DataError where the points allow no fit.
    """
    from scaling.laws.analysis import analyse, load_points
    from scaling.laws.options import FitOptions

    with tempfile.TemporaryDirectory() as scratch:
        key, path, name = _source(source, Path(scratch))
        asked = _checked(FitOptions, {key: str(path), **options})
        analysis = analyse(load_points(asked), asked)
    return FittedLaws(analysis, f"Scaling laws of {name}")


def predict_from(law: FittedLaws | str | Path, **question: Any) -> Prediction:
    """What a fitted law predicts: c=FLOPS, or n=PARAMETERS and d=TOKENS, or loss=NATS.

    law: what `fit_law` returned, or the directory of a report of `python -m scaling.fit`.
    question: also form="kaplan", cluster="8xH100" (hours, cost and energy of the recommended run)
    and model="from_law" (its shape and command). Raises ConfigError.
    """
    from scaling.laws import store
    from scaling.laws.answer import predict
    from scaling.laws.options import PredictOptions

    if isinstance(law, FittedLaws):
        found, place = store.to_json(law.analysis), "here"
    else:
        place = str(Path(law).expanduser())
        found = store.read(Path(place))
    return predict(found, _checked(PredictOptions, {"fit": place, **question}))


def _source(
    source: Study | Frame | Iterable[Mapping[str, Any]] | str | Path, scratch: Path
) -> tuple[str, Path, str]:
    """The option that names the points, their path, and what a title calls them."""
    if isinstance(source, Study):
        return "study", source.path, source.path.name
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return ("study" if path.is_dir() else "table"), path, path.name
    rows = source.to_dict("records") if isinstance(source, Frame) else list(source)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # Through a file: the text of a float reads back as the same float, and the table is checked
    # by the same reader as every other.
    path = scratch / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return "table", path, "a table"


def _checked(kind: Any, values: Mapping[str, Any]) -> Any:
    """Options from Python values, checked by the reader of the command line."""
    from scaling.commands.options import read_options

    words = [f"{key}={_as_text(value)}" for key, value in values.items() if value is not None]
    return read_options(kind, words)


def _as_text(value: Any) -> str:
    """A value as it would be typed: a list with commas, a pair or a mapping with colons."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(_as_text(item) for item in value)
    return str(value)


def _pandas(who: str) -> Any:
    try:
        import pandas
    except ImportError as error:
        fix = "pip install 'scaling-ladder[notebook]'"
        raise ConfigError("pandas is not installed", who, fix) from error
    return pandas


def _report(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)
