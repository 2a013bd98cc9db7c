"""`python -m scaling.predict`: predict from a fitted law, for a budget, a run or a wanted loss."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.commands import entry
from scaling.launch.interrupt import Stopped

if TYPE_CHECKING:
    from scaling.laws.recommend import Recommendation

AFTER_STOP = "the same command begins again, and a run that it launched continues"
PREDICTION = "prediction.json"
"""File in the directory of a run that this command launches: its prediction before training."""

USAGE = """\
Usage: python -m scaling.predict fit=DIR c=FLOPS | n=PARAMETERS d=TOKENS | loss=NATS [KEY=VALUE ...]

{keys}

Exit codes: 0 predicted (launch=true: that of the run); 1 a fit that cannot be read;
2 a wrong argument; 75 stopped."""


def main(argv: Sequence[str] | None = None) -> int:
    return entry.enter(_command, argv, after_stop=AFTER_STOP)


def _command(words: list[str]) -> int:
    """Print the prediction. The imports are here, behind the door."""
    from scaling.commands.fitted_help import print_help
    from scaling.composition.flags import answered
    from scaling.composition.words import option_lines, read_options
    from scaling.laws.options import PredictOptions
    from scaling.runs.files import to_json

    if answered(
        words, lambda: print_help(USAGE.format(keys="\n".join(option_lines(PredictOptions))))
    ):
        return 0
    options = read_options(PredictOptions, words)
    from scaling.laws import fit_file
    from scaling.laws.answer import predict  # loads numpy, so a wrong option is reported first
    from scaling.laws.recommend import write_recommendation
    from scaling.terminal import print_items

    prediction = predict(fit_file.read(Path(options.fit)), options)
    answer, lines = prediction.to_dict(), prediction.lines()
    run = prediction.recommended
    if run is not None and options.out is not None:
        path = write_recommendation(run, answer["recommended"], Path(options.out))
        lines.insert(-1, f"  written to {path}")
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
    from scaling.runs.files import read_object, write_json

    run_dir = RunDir.for_config(recommendation.config)
    run_dir.create()
    # A repeated command does not replace the prediction: it was made before training.
    if not (run_dir.path / PREDICTION).exists():
        write_json(run_dir.path / PREDICTION, prediction)
    code = _run([sys.executable, "-m", "scaling.run", *recommendation.overrides])
    summary = run_dir.read_summary() if code == 0 else None
    if summary is not None:
        print(_verdict(summary.get("val_loss"), read_object(run_dir.path / PREDICTION) or {}))
    return code


def _run(command: list[str]) -> int:
    """The exit code of the run, which is given the time to save itself when this is stopped."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except Stopped as stopped:
        if stopped.signal != "SIGINT":  # Ctrl-C has reached it too, and a second one is no request
            process.send_signal(signal.Signals[stopped.signal])
        return process.wait()


def _verdict(loss: float | None, prediction: dict[str, Any]) -> str:
    if loss is None:
        return "The run has no held-out loss to compare with the prediction."
    expected = prediction["loss"]
    low, high = expected["new_low"], expected["new_high"]
    where = "inside" if low <= loss <= high else "outside"
    return (
        f"Predicted {expected['value']:.4f} ({low:.4f} to {high:.4f} for a new run), "
        f"reached {loss:.4f}: error {100 * (expected['value'] / loss - 1):+.2f} %, "
        f"{where} of the interval."
    )


if __name__ == "__main__":
    entry.leave(main())
