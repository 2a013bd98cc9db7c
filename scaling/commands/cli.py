"""What the commands share: Hydra around a task, errors as one message, documented exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, cast

from scaling.composition.flags import FLAGS
from scaling.config.run_config import RunConfig, conf_dir
from scaling.config.spelling import TYPED, no_flag
from scaling.errors import EXIT_FINISHED, ConfigError, ScalingError

Job = tuple[RunConfig, tuple[str, ...]]
"""A validated configuration, and the words that composed it."""


def run_task(
    task: Callable[[RunConfig], int], study: Callable[[Sequence[Job]], int], argv: list[str]
) -> int:
    """Compose the configuration of `argv` through Hydra and run `task` on it; returns the exit
    code.

    task: validated RunConfig -> exit code. study: the same of all the configurations of a multirun
    (-m). Errors that a user can mend are printed as one message.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from scaling.composition.code_refusal import inert_configurations, refuse_pickled_jobs
    from scaling.composition.compose import COMPOSITION_ERRORS, explain, in_full, validate
    from scaling.composition.hydra_parts import attach_study

    codes: list[int] = []
    composed_once = False
    overrides = [word for word in argv if not word.startswith("-")]

    @hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
    def main(composed: DictConfig) -> None:
        nonlocal composed_once
        composed_once = True
        with reported(codes, debug="scaling.debug=true" in overrides):
            # as typed, references unresolved
            given = OmegaConf.to_container(HydraConfig.get().overrides.task)
            config = validate(composed, cast(list[str], given))
            if config.study.kind != "none":
                raise ConfigError(
                    f"study={config.study.kind} makes many runs",
                    "from the command line",
                    "Start it with -m.",
                )
            codes.append(task(config))

    def launch(jobs: Sequence[tuple[DictConfig, tuple[str, ...]]]) -> None:
        """What the launcher of hydra_plugins calls."""
        nonlocal composed_once
        composed_once = True
        with reported(codes, debug="scaling.debug=true" in overrides):
            codes.append(study([(validate(composed, words), words) for composed, words in jobs]))

    attach_study(main, launch)

    with (
        reported(codes, debug="scaling.debug=true" in overrides),
        _full_errors(),
        inert_configurations(),
    ):
        refuse_pickled_jobs(argv)
        _refuse_flags(argv)
        sys.argv[1:] = in_full(argv)  # where Hydra reads them
        try:
            main()
        except COMPOSITION_ERRORS as error:
            raise explain(error, overrides) from error
        except ValueError as error:
            if composed_once:  # the task's, not Hydra's
                raise
            raise explain(error, overrides) from error
    return max(codes, default=EXIT_FINISHED)


def _refuse_flags(argv: Sequence[str]) -> None:
    """Raises ConfigError for what is none of Hydra's flags. Hydra itself would list those, and say
    nothing of keys."""
    from scaling.composition.compose import keys
    from scaling.composition.hydra_parts import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(
            message, TYPED, "--help lists every group and key, --hydra-help the flags."
        )

    vars(parser)["error"] = refuse
    unknown = parser.parse_known_args(list(argv))[1]
    if unknown:
        raise no_flag(
            argv,
            list(argv).index(unknown[0]),
            list(keys()),
            ("-m for a study", *FLAGS, "--hydra-help"),
        )


@contextlib.contextmanager
def reported(codes: list[int], *, debug: bool) -> Iterator[None]:
    """Print a ScalingError as its message, with the traceback in debugging, and note its exit
    code."""
    try:
        yield
    except ScalingError as error:
        if debug:
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        codes.append(error.exit_code)


@contextlib.contextmanager
def _full_errors() -> Iterator[None]:
    """Have Hydra raise its errors to us instead of printing them and leaving."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
