"""Answers of a stored analysis: the best run of a budget, the loss of a run, the budget of a
loss."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from scaling import markup
from scaling.errors import ConfigError
from scaling.laws import fit_file
from scaling.laws.forecast import (
    LOUD_DECADES,
    Estimate,
    Law,
    Optimum,
    OverTraining,
    best_of_budget,
    budget_of_loss,
    decades_beyond,
    estimate,
    loss_at,
    over_training,
)
from scaling.laws.forms import predict_loss
from scaling.laws.options import PredictOptions
from scaling.laws.recommend import Recommendation, base_of, recommend
from scaling.units import counted, format_count, format_duration


@dataclass(frozen=True)
class Prediction:
    """One answer of a law. A field is None, or empty, where the question does not ask for it.

    form             name of the form that predicts; `law` is the form as fitted
    budget           least FLOPs that reach the wanted loss
    flops            FLOPs of the run or of the budget
    n_params         N of the run that is predicted; n_tokens is its D
    loss             loss of a run of given N and D, in nats
    optimum          best split of a budget, with its loss
    approaches       N* and D* of the same budget by IsoFLOP curves and by the envelope
    over_training    smaller models trained to the loss of the optimum, and what they cost
    metrics          downstream metric of the run, by fitted curve
    decades_beyond   distance in FLOPs, N or D beyond the fitted runs, in powers of ten
    recommended      nearest shape, its plan and the words that train it; `expected` is its loss
    """

    form: str
    law: Law
    budget: Estimate | None = None
    wanted_loss: float | None = None
    flops: float | None = None
    n_params: float | None = None
    n_tokens: float | None = None
    loss: Estimate | None = None
    decades_beyond: float | None = None
    optimum: Optimum | None = None
    approaches: Mapping[str, Estimate] = field(default_factory=dict)
    over_training: tuple[OverTraining, ...] = ()
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    recommended: Recommendation | None = None
    expected: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `python -m scaling.predict json=true` prints them."""
        law = self.law
        values: dict[str, Any] = {"form": self.form, "equation": law.form.equation}
        values["definitions"] = asdict(law.definitions)
        if self.budget is not None:
            values["budget"] = asdict(self.budget)
        if self.loss is not None:
            values |= {"flops": self.flops, "loss": asdict(self.loss)}
            values["decades_beyond"] = self.decades_beyond
        if self.optimum is not None:
            values["optimum"] = asdict(self.optimum)
            values["approaches"] = {name: asdict(value) for name, value in self.approaches.items()}
            values["over_training"] = [asdict(price) for price in self.over_training]
        if self.metrics:
            values["metric"] = {curve: asdict(value) for curve, value in self.metrics.items()}
        if self.recommended is not None:
            values["recommended"] = self._run()
        return values

    def _run(self) -> dict[str, Any]:
        assert self.recommended is not None
        assert self.expected is not None
        plan = self.recommended.plan
        return {
            "overrides": list(self.recommended.overrides),
            "n_params": self.recommended.n_params,
            "n_tokens": plan.n_tokens,
            "flops": plan.flops,
            "hours": plan.hours,
            "usd": plan.usd,
            "kwh": plan.kwh,
            "form": self.form,
            "loss": asdict(self.expected),
        }

    def lines(self) -> list[str]:
        """The answer as text; the last line is the command of the recommended run, if there is
        one."""
        return list(_lines(self))

    def __repr__(self) -> str:
        asked = {
            "budget": self.budget and self.budget.value,
            "flops": self.flops,
            "loss": self.loss and self.loss.value,
            "n_params": self.optimum.n_params.value if self.optimum else self.n_params,
            "n_tokens": self.optimum.n_tokens.value if self.optimum else self.n_tokens,
        }
        shown = [f"{name}={value:.5g}" for name, value in asked.items() if value is not None]
        return f"<Prediction {', '.join([f'form={self.form}', *shown])}>"

    def _repr_html_(self) -> str:
        first, *others = self.lines()
        return markup.table((), ((line.strip(),) for line in others), first)


def predict(found: Mapping[str, Any], options: PredictOptions) -> Prediction:
    """The answer of a stored analysis (`fit_file.read`, or `fit_file.to_json` of one made here).

    Raises ConfigError for a form that was not fitted or has no optimum.
    """
    form = options.form or next(iter(found["forms"]), None)
    if form is None:
        fix = "Fit one with python -m scaling.fit."
        raise ConfigError("the fit contains no form", "fit", fix)
    answer = _answer(Prediction(form, fit_file.law_of(found, form)), found, options)
    n_params, n_tokens = answer.n_params, answer.n_tokens
    if n_params is None or n_tokens is None:
        return answer
    answer = replace(answer, metrics=_metrics(found, answer))
    if not (options.model or options.cluster or options.launch):
        return answer
    recommended = recommend(
        n_params,
        n_tokens,
        with_embeddings="without" not in answer.law.definitions.n_counts,
        base=base_of(found),
        overrides=(f"cluster={options.cluster}",) if options.cluster else (),
    )
    expected = loss_at(answer.law, recommended.n_params, recommended.plan.n_tokens)
    return replace(answer, recommended=recommended, expected=expected)


def _answer(start: Prediction, found: Mapping[str, Any], options: PredictOptions) -> Prediction:
    """Answer the question itself, without downstream metrics and without a recommended run."""
    law, flops = start.law, options.c
    if options.n is not None and options.d is not None:
        flops = law.definitions.flops_per_nd * options.n * options.d
        return replace(
            start,
            flops=flops,
            n_params=options.n,
            n_tokens=options.d,
            loss=loss_at(law, options.n, options.d),
            decades_beyond=decades_beyond(law, flops=flops, n_params=options.n, n_tokens=options.d),
        )
    if options.loss is not None:
        least = budget_of_loss(law, options.loss)
        flops = least.value
        start = replace(start, budget=least, wanted_loss=options.loss)
    assert flops is not None, "the options ask for a budget, a run or a loss"
    optimum = best_of_budget(law, flops)
    return replace(
        start,
        flops=flops,
        n_params=optimum.n_params.value,
        n_tokens=optimum.n_tokens.value,
        optimum=optimum,
        decades_beyond=optimum.decades_beyond,
        approaches=dict(_other_approaches(found, flops)),
        over_training=tuple(over_training(law, flops)),
    )


def _metrics(found: Mapping[str, Any], answer: Prediction) -> dict[str, Estimate]:
    """The downstream metric by each fitted curve, with the draws of the law and of the curve
    combined."""
    law = answer.law
    n, d = np.array([answer.n_params]), np.array([answer.n_tokens])
    losses = predict_loss(law.form, law.sample(), n, d)[:, 0]
    return {
        fit.curve: estimate(np.append(fit.metric(losses[:1]), fit.metric_draws(losses[1:])))
        for fit in fit_file.downstream_of(found)
    }


def _other_approaches(found: Mapping[str, Any], flops: float) -> Iterator[tuple[str, Estimate]]:
    """N* by approaches 1 and 2, and D* by approach 2, where they were fitted."""
    fits = {f"IsoFLOP {axis.upper()}*": fit for axis, fit in found["isoflop"].items()}
    if "envelope" in found:
        fits["envelope N*"] = found["envelope"]
    for name, fit in fits.items():
        slopes = np.array([fit["exponent"], *fit["exponents"]], dtype=float)
        constants = np.array([fit["log_coefficient"], *fit["log_coefficients"]], dtype=float)
        yield name, estimate(np.exp(constants + slopes * np.log(flops)))


def _lines(answer: Prediction) -> Iterator[str]:
    law = answer.law
    counts = law.definitions.n_counts
    yield f"{answer.form}: {law.form.equation}; N counts: {counts}; 95 % intervals"
    if answer.budget is not None:
        yield f"loss {answer.wanted_loss:g} needs {_shown(answer.budget)} FLOPs"
    if answer.loss is not None:
        assert answer.n_params is not None
        assert answer.n_tokens is not None
        assert answer.decades_beyond is not None
        n, d = format_count(answer.n_params), format_count(answer.n_tokens)
        yield f"N = {n}, D = {d}: {answer.flops:.4g} FLOPs"
        yield _loss_line(answer.loss)
        yield from _extrapolation(answer.decades_beyond, law)
    if answer.optimum is not None:
        yield from _optimum_lines(answer.optimum, answer.approaches, law)
        yield from _price_lines(answer.over_training)
    for curve, value in answer.metrics.items():
        yield f"  downstream metric, {curve}: {_shown(value)}"
    if answer.recommended is not None:
        assert answer.expected is not None
        yield from _run_lines(answer.recommended, answer.expected)


def _optimum_lines(optimum: Optimum, approaches: Mapping[str, Estimate], law: Law) -> Iterator[str]:
    low, high = (format_count(size) for size in optimum.near)
    yield f"C = {optimum.flops:.4g} FLOPs"
    yield f"  N* = {_shown(optimum.n_params)} parameters"
    yield f"  loss within 0.1 % of the lowest: N from {low} to {high}"
    yield (
        f"  D* = {_shown(optimum.n_tokens)} tokens, {_shown(optimum.tokens_per_param)} a parameter"
    )
    yield from (f"  {name} = {_shown(value)}" for name, value in approaches.items())
    yield _loss_line(optimum.loss)
    yield from _extrapolation(optimum.decades_beyond, law)


def _loss_line(loss: Estimate) -> str:
    return (
        f"  loss = {loss.value:.5g} nats; of the mean {loss.low:.5g} to {loss.high:.5g}; "
        f"of a new run {loss.new_low:.5g} to {loss.new_high:.5g}"
    )


def _extrapolation(decades: float, law: Law) -> Iterator[str]:
    if decades <= 0:
        yield "  within the runs fitted"
        return
    fitted = f"C from {law.smallest[2]:.3g} to {law.largest[2]:.3g} FLOPs"
    text = f"{decades:.2f} decades beyond the runs fitted ({fitted})"
    if decades < LOUD_DECADES:
        yield f"  extrapolated {text}"
    else:
        yield f"  !! EXTRAPOLATED {text}: the intervals do not cover an error of the form itself !!"


def _price_lines(prices: tuple[OverTraining, ...]) -> Iterator[str]:
    if prices:
        yield "  the same loss from a smaller model:"
    for price in prices:
        sizes = f"N {format_count(price.n_params)}, D {format_count(price.n_tokens)}"
        training, inference = f"{price.training_flops:.3g}", f"{price.inference_flops:.2g}"
        served = f"cheaper in all beyond {format_count(price.break_even_tokens)} served tokens"
        yield f"    {sizes}: training x {training}, inference x {inference}, {served}"


def _run_lines(recommendation: Recommendation, expected: Estimate) -> Iterator[str]:
    plan, config, model = recommendation.plan, recommendation.config, recommendation.config.model
    hours = "unknown" if plan.hours is None else format_duration(plan.hours * 3600)
    usd = "unknown" if plan.usd is None else f"{plan.usd:,.0f} USD"
    kwh = "unknown" if plan.kwh is None else f"{plan.kwh:,.0f} kWh"
    layers = counted(model.n_layers, "layer")
    shape = f"{layers}, d_model {model.d_model}, {counted(model.n_heads, 'head')}"
    n_params = format_count(recommendation.n_params)
    yield f"nearest shape: {shape}, {n_params} parameters as the law counts them"
    train, rule = config.train, recommendation.batch_rule
    sequences = counted(train.global_batch_size, "sequence")
    batch = f"{sequences} of {train.seq_len} tokens a step"
    yield f"  {batch}, learning rate {config.optim.lr:.3g}{rule}"
    yield f"  on {config.cluster.name}: estimated {hours}, cost {usd}, energy {kwh}"
    yield _loss_line(expected)
    yield f"  python -m scaling.run {shlex.join(recommendation.overrides)}"


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"
