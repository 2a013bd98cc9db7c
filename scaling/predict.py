"""python -m scaling.predict: predict from a fitted law, for a budget, a run or a wanted loss."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.composition.flags import answered
from scaling.composition.words import read_options
from scaling.errors import ScalingError
from scaling.laws.options import PredictOptions, keys_help
from scaling.runs.files import read_object, to_json, write_json
from scaling.screen import print_help, print_items

if TYPE_CHECKING:
    from scaling.laws.recommend import Recommendation

PREDICTION = "prediction.json"
"""File in the directory of a run that this command launches: its prediction before training."""

USAGE = f"""\
Usage: python -m scaling.predict fit=DIR c=FLOPS | n=PARAMETERS d=TOKENS | loss=NATS [KEY=VALUE ...]

{keys_help(PredictOptions)}

Exit codes: 0 predicted (launch=true: that of the run); 1 a fit that cannot be read;
2 a wrong argument."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the prediction; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if answered(words, lambda: print_help(USAGE)):
        return 0
    try:
        options = read_options(PredictOptions, words)
        from scaling.laws import fit_file
        from scaling.laws.answer import predict  # loads numpy, so a wrong option is reported first
        from scaling.laws.recommend import write_recommendation

        prediction = predict(fit_file.read(Path(options.fit)), options)
        answer, lines = prediction.to_dict(), prediction.lines()
        run = prediction.recommended
        if run is not None and options.out is not None:
            path = write_recommendation(run, answer["recommended"], Path(options.out))
            lines.insert(-1, f"  written to {path}")
    except ScalingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    if options.json_:
        print(to_json(answer, indent=2), flush=True)
    else:
        print_items(lines)
    if run is None or not options.launch:
        return 0
    return _launch(run, answer["recommended"])


def _launch(recommendation: Recommendation, prediction: dict[str, Any]) -> int:
    """Write the prediction into the directory of the recommended run, train it, and compare."""
    from scaling.runs.directory import RunDir

    run_dir = RunDir.for_config(recommendation.config)
    try:
        run_dir.create()
        # A repeated command does not replace the prediction: it was made before training.
        if not (run_dir.path / PREDICTION).exists():
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
        return "The run has no held-out loss to compare with the prediction."
    expected = prediction["loss"]
    low, high = expected["new_low"], expected["new_high"]
    where = "inside" if low <= loss <= high else "outside"
    return (
        f"Predicted {expected['value']:.4f} ({low:.4f} to {high:.4f} for a new run), "
        f"reached {loss:.4f}: "
        f"error {100 * (expected['value'] / loss - 1):+.2f} %, {where} of the interval."
    )


if __name__ == "__main__":
    sys.exit(main())
