"""python -m scaling.predict: what a fitted law says of a budget, a run or a wanted loss."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from scaling.composition.flags import answered
from scaling.config.section import Section
from scaling.errors import ScalingError
from scaling.laws.options import Place, keys_help, parse
from scaling.runs.files import read_object, to_json, write_json
from scaling.screen import print_help, print_items
from scaling.units import format_count, format_duration

if TYPE_CHECKING:
    from scaling.laws.forecast import Estimate, Law, Optimum, OverTraining
    from scaling.laws.recommend import Recommendation


PREDICTION = "prediction.json"
"""In the directory of a run that was launched from here: what was predicted before it began."""


class PredictOptions(Section):
    """What `python -m scaling.predict` is asked."""

    fit: Place = Field(
        description="the directory of a report of python -m scaling.fit, or its fit.json"
    )
    form: str | None = Field(
        None, description="the form to predict with; default: the first fitted"
    )
    c: float | None = Field(
        None, gt=0, description="a budget in FLOPs: the best N and D, and their loss"
    )
    n: float | None = Field(None, gt=0, description="parameters of a run, with d")
    d: float | None = Field(None, gt=0, description="tokens of a run, with n")
    loss: float | None = Field(
        None, gt=0, description="a wanted loss in nats: the least budget that reaches it"
    )
    cluster: str | None = Field(
        None, description="a cluster of conf/cluster: hours, cost and energy of the recommended run"
    )
    model: str | None = Field(
        None, description="from_law: the nearest shape and the command that trains it"
    )
    out: Place | None = Field(
        None, description="file for the recommended configuration as YAML; default: none is written"
    )
    launch: bool = Field(False, description="start that command")
    json_: bool = Field(False, alias="json", description="print one JSON object instead of text")

    @model_validator(mode="after")
    def _question(self) -> Self:
        asked = [
            self.c is not None,
            self.n is not None or self.d is not None,
            self.loss is not None,
        ]
        if sum(asked) != 1:
            raise ValueError("ask one thing: c=FLOPS, n=PARAMETERS d=TOKENS, or loss=NATS")
        if (self.n is None) != (self.d is None):
            raise ValueError("a run is given by both n=PARAMETERS and d=TOKENS")
        if self.model not in (None, "from_law"):
            raise ValueError(f"model={self.model} is unknown; there is model=from_law")
        if self.out is not None and not (self.model or self.cluster or self.launch):
            raise ValueError(
                "out=FILE holds a recommended run; ask for one with model=from_law or cluster=NAME"
            )
        return self


USAGE = f"""\
Usage: python -m scaling.predict fit=DIR c=FLOPS | n=PARAMETERS d=TOKENS | loss=NATS [KEY=VALUE ...]

{keys_help(PredictOptions)}

Exit codes: 0 predicted (launch=true: that of the run); 2 a wrong argument; 1 a fit that cannot be read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the prediction; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if answered(words, lambda: print_help(USAGE)):
        return 0
    try:
        options = parse(PredictOptions, words, "scaling.predict")
        answer, lines, recommendation = _answer(options)
        if recommendation is not None and options.out is not None:
            lines.insert(
                -1,
                f"  written to {_write(Path(options.out), recommendation, answer['recommended'])}",
            )
    except ScalingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    if options.json_:
        print(to_json(answer, indent=2), flush=True)
    else:
        print_items(lines)
    if recommendation is None or not options.launch:
        return 0
    return _launch(recommendation, answer["recommended"])


def _answer(options: PredictOptions) -> tuple[dict[str, Any], list[str], Recommendation | None]:
    """The prediction as JSON values and as lines, and the run that it recommends, where one was
    asked for."""
    from scaling.errors import ConfigError
    from scaling.laws import store
    from scaling.laws.forecast import (
        best_of_budget,
        budget_of_loss,
        decades_beyond,
        loss_at,
        over_training,
    )

    found = store.read(Path(options.fit))
    form = options.form or next(iter(found["forms"]), None)
    if form is None:
        raise ConfigError("no form was fitted there", "fit", "Fit one with python -m scaling.fit.")
    law = store.law_of(found, form)
    answer: dict[str, Any] = {
        "form": form,
        "equation": law.form.equation,
        "definitions": asdict(law.definitions),
    }
    lines = [f"{form}: {law.form.equation}; N counts: {law.definitions.n_counts}; 95 % intervals"]
    flops, split = options.c, (options.n, options.d)
    if options.loss is not None:
        least = budget_of_loss(law, options.loss)
        flops = least.value
        answer["budget"] = asdict(least)
        lines.append(f"loss {options.loss:g} needs {_shown(least)} FLOPs")
    if options.n is not None and options.d is not None:
        run_flops = law.definitions.flops_per_nd * options.n * options.d
        estimate, decades = (
            loss_at(law, options.n, options.d),
            decades_beyond(law, flops=run_flops, n_params=options.n, n_tokens=options.d),
        )
        answer |= {"flops": run_flops, "loss": asdict(estimate), "decades_beyond": decades}
        lines += [
            f"N = {format_count(options.n)}, D = {format_count(options.d)}: {run_flops:.4g} FLOPs",
            _loss_line(estimate),
        ]
        lines += _extrapolation(decades, law)
    elif flops is not None:
        optimum = best_of_budget(law, flops)
        approaches, prices = dict(_other_approaches(found, flops)), over_training(law, flops)
        answer |= {
            "optimum": asdict(optimum),
            "approaches": {k: asdict(v) for k, v in approaches.items()},
        }
        answer["over_training"] = [asdict(price) for price in prices]
        lines += [*_optimum_lines(optimum, approaches, law), *_price_lines(prices)]
        split = (optimum.n_params.value, optimum.n_tokens.value)
    metrics = _metrics(found, law, split)
    if metrics:
        answer["metric"] = {curve: asdict(value) for curve, value in metrics.items()}
        lines += [
            f"  downstream metric, {curve}: {_shown(value)}" for curve, value in metrics.items()
        ]
    recommendation = _recommended(options, found, law, split)
    if recommendation is not None:
        plan = recommendation.plan
        expected = loss_at(law, recommendation.n_params, plan.n_tokens)
        answer["recommended"] = {
            "overrides": list(recommendation.overrides),
            "n_params": recommendation.n_params,
            "n_tokens": plan.n_tokens,
            "flops": plan.flops,
            "hours": plan.hours,
            "usd": plan.usd,
            "kwh": plan.kwh,
            "form": form,
            "loss": asdict(expected),
        }
        lines += _run_lines(recommendation, expected)
    return answer, lines, recommendation


def _write(path: Path, recommendation: Recommendation, prediction: dict[str, Any]) -> Path:
    """The recommended configuration, where it was asked for."""
    from scaling.laws.recommend import write_recommendation

    return write_recommendation(recommendation, prediction, path)


def _launch(recommendation: Recommendation, prediction: dict[str, Any]) -> int:
    """Train the recommended run, its prediction written into its directory beforehand, and hold
    what it reaches against that."""
    from scaling.runs.directory import RunDir

    run_dir = RunDir.for_config(recommendation.config)
    try:
        run_dir.create()
        if not (run_dir.path / PREDICTION).exists():  # the first one counts
            write_json(run_dir.path / PREDICTION, prediction)
        code = subprocess.call([sys.executable, "-m", "scaling.run", *recommendation.overrides])
        summary = run_dir.read_summary() if code == 0 else None
        if summary is not None:
            print(_verdict(summary.get("val_loss"), read_object(run_dir.path / PREDICTION) or {}))
    except ScalingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return code


def _verdict(loss: float | None, prediction: dict[str, Any]) -> str:
    if loss is None:
        return "The run has no held-out loss to hold the prediction against."
    expected = prediction["loss"]
    low, high = expected["new_low"], expected["new_high"]
    where = "inside" if low <= loss <= high else "outside"
    return (
        f"Predicted {expected['value']:.4f} ({low:.4f} to {high:.4f} for a new run), reached {loss:.4f}: "
        f"error {100 * (expected['value'] / loss - 1):+.2f} %, {where} of the interval."
    )


def _recommended(
    options: PredictOptions,
    found: dict[str, Any],
    law: Law,
    split: tuple[float | None, float | None],
) -> Recommendation | None:
    n, d = split
    if not (options.model or options.cluster or options.launch) or n is None or d is None:
        return None
    from scaling.laws.recommend import base_of, recommend

    overrides = (f"cluster={options.cluster}",) if options.cluster else ()
    counted = "without" not in law.definitions.n_counts
    return recommend(n, d, with_embeddings=counted, base=base_of(found), overrides=overrides)


def _metrics(
    found: dict[str, Any], law: Law, split: tuple[float | None, float | None]
) -> dict[str, Estimate]:
    """The downstream metric of a run, by each curve that was fitted: the second step, on draws of
    the first."""
    import numpy as np

    from scaling.laws import store
    from scaling.laws.forecast import estimate
    from scaling.laws.forms import predict_loss

    n, d = split
    if n is None or d is None:
        return {}
    losses = predict_loss(law.form, law.sample(), np.array([n]), np.array([d]))[:, 0]
    curves = store.downstream_of(found)
    return {
        fit.curve: estimate(np.append(fit.metric(losses[:1]), fit.metric_draws(losses[1:])))
        for fit in curves
    }


def _other_approaches(found: dict[str, Any], flops: float) -> Iterator[tuple[str, Estimate]]:
    """N* of approaches 1 and 2, and D* of approach 2, where they were fitted."""
    import numpy as np

    from scaling.laws.forecast import estimate

    fits = {f"IsoFLOP {axis.upper()}*": fit for axis, fit in found["isoflop"].items()}
    if "envelope" in found:
        fits["envelope N*"] = found["envelope"]
    for name, fit in fits.items():
        slopes, constants = (
            np.array([fit[one], *fit[many]], dtype=float)
            for one, many in (("exponent", "exponents"), ("log_coefficient", "log_coefficients"))
        )
        yield name, estimate(np.exp(constants + slopes * np.log(flops)))


def _optimum_lines(optimum: Optimum, approaches: dict[str, Estimate], law: Law) -> list[str]:
    low, high = optimum.near
    return [
        f"C = {optimum.flops:.4g} FLOPs",
        f"  N* = {_shown(optimum.n_params)} parameters",
        f"  loss within 0.1 % of the lowest: N from {format_count(low)} to {format_count(high)}",
        f"  D* = {_shown(optimum.n_tokens)} tokens, {_shown(optimum.tokens_per_param)} a parameter",
        *(f"  {name} = {_shown(value)}" for name, value in approaches.items()),
        _loss_line(optimum.loss),
        *_extrapolation(optimum.decades_beyond, law),
    ]


def _loss_line(loss: Estimate) -> str:
    return (
        f"  loss = {loss.value:.5g} nats; of the mean {loss.low:.5g} to {loss.high:.5g}; "
        f"of a new run {loss.new_low:.5g} to {loss.new_high:.5g}"
    )


def _extrapolation(decades: float, law: Law) -> list[str]:
    from scaling.laws.forecast import LOUD_DECADES

    if decades <= 0:
        return ["  within the runs fitted"]
    text = f"{decades:.2f} decades beyond the runs fitted (C from {law.smallest[2]:.3g} to {law.largest[2]:.3g} FLOPs)"
    if decades < LOUD_DECADES:
        return [f"  extrapolated {text}"]
    return [f"  !! EXTRAPOLATED {text}: the intervals do not cover an error of the form itself !!"]


def _price_lines(prices: list[OverTraining]) -> list[str]:
    lines = ["  the same loss from a smaller model:"] if prices else []
    for price in prices:
        sizes = f"N {format_count(price.n_params)}, D {format_count(price.n_tokens)}"
        costs = f"training x {price.training_flops:.3g}, inference x {price.inference_flops:.2g}"
        lines.append(
            f"    {sizes}: {costs}, cheaper in all beyond {format_count(price.break_even_tokens)} served tokens"
        )
    return lines


def _run_lines(recommendation: Recommendation, expected: Estimate) -> list[str]:
    plan, config = recommendation.plan, recommendation.config
    hours = "unknown" if plan.hours is None else format_duration(plan.hours * 3600)
    usd = "unknown" if plan.usd is None else f"{plan.usd:,.0f} USD"
    kwh = "unknown" if plan.kwh is None else f"{plan.kwh:,.0f} kWh"
    shape = f"{config.model.n_layers} layers, d_model {config.model.d_model}, {config.model.n_heads} heads"
    return [
        f"nearest shape: {shape}, {format_count(recommendation.n_params)} parameters as the law counts them",
        f"  {config.train.global_batch_size} sequences of {config.train.seq_len} tokens a step, "
        f"learning rate {config.optim.lr:.3g}{recommendation.batch_rule}",
        f"  on {config.cluster.name}: estimated {hours}, cost {usd}, energy {kwh}",
        _loss_line(expected),
        f"  python -m scaling.run {shlex.join(recommendation.overrides)}",
    ]


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


if __name__ == "__main__":
    sys.exit(main())
