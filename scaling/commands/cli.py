"""What the commands share: Hydra around a task, errors as one message, documented exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, cast

from scaling.commands.entry import reported
from scaling.composition.known import refuse_mistyped, unknown_flag
from scaling.composition.shorthand import in_full
from scaling.config.run_config import RunConfig, conf_dir
from scaling.config.spelling import TYPED
from scaling.errors import EXIT_FINISHED, ConfigError

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
    codes: list[int] = []
    debug = "scaling.debug=true" in argv
    with reported(codes, debug=debug):
        refuse_mistyped(in_full(argv))
        return _run_composed(task, study, argv, debug=debug)
    return codes[0]


def _run_composed(
    task: Callable[[RunConfig], int],
    study: Callable[[Sequence[Job]], int],
    argv: list[str],
    *,
    debug: bool,
) -> int:
    """The part of `run_task` for which Hydra is loaded, which takes a third of a second."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from scaling.composition.code_refusal import inert_configurations, refuse_pickled_jobs
    from scaling.composition.compose import validate
    from scaling.composition.hydra_parts import attach_study
    from scaling.composition.jobs import Composed

    codes: list[int] = []
    composed_once = False

    @hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
    def main(composed: DictConfig) -> None:
        nonlocal composed_once
        composed_once = True
        with reported(codes, debug=debug):
            # as typed, references unresolved
            given = OmegaConf.to_container(HydraConfig.get().overrides.task)
            codes.append(task(_one_run(validate(composed, cast(list[str], given)))))

    def launch(jobs: Sequence[tuple[Composed, tuple[str, ...]]]) -> None:
        """What the launcher of hydra_plugins calls."""
        nonlocal composed_once
        composed_once = True
        with reported(codes, debug=debug):
            codes.append(study([(validate(composed, words), words) for composed, words in jobs]))

    attach_study(main, launch)

    with reported(codes, debug=debug), _full_errors(), inert_configurations():
        refuse_pickled_jobs(argv)
        _refuse_flags(argv)
        sys.argv[1:] = in_full(argv)  # where Hydra reads them
        with _explained(argv, lambda: composed_once):
            main()
    return max(codes, default=EXIT_FINISHED)


def _one_run(config: RunConfig) -> RunConfig:
    """`config` itself. Raises ConfigError where it makes a study."""
    if config.study.kind != "none":
        raise ConfigError(f"study={config.study.kind} makes many runs", TYPED, "Start it with -m.")
    return config


@contextlib.contextmanager
def _explained(argv: Sequence[str], is_composed: Callable[[], bool]) -> Iterator[None]:
    """Turn errors of Hydra's composition into ConfigErrors that say what is wrong."""
    from scaling.composition.explain import COMPOSITION_ERRORS, explain

    overrides = [word for word in argv if not word.startswith("-")]
    try:
        yield
    except COMPOSITION_ERRORS as error:
        raise explain(error, overrides) from error
    except ValueError as error:
        if is_composed():  # the task's, not Hydra's
            raise
        raise explain(error, overrides) from error


def _refuse_flags(argv: Sequence[str]) -> None:
    """Raises ConfigError for what Hydra's parser refuses. Hydra itself would list its flags, and
    not name a key."""
    from scaling.composition.hydra_parts import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(
            message, TYPED, "--help lists every group and key, --hydra-help the flags."
        )

    vars(parser)["error"] = refuse
    unknown = parser.parse_known_args(list(argv))[1]
    if unknown:
        raise unknown_flag(argv, list(argv).index(unknown[0]))


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
