"""A finished run that continues for more tokens: bit for bit the long run, or another with its own
schedule that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scaling.composition.compose import compose
from scaling.composition.extension import rewarmed_from
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError
from scaling.launch.run import drive
from scaling.planner.run_plan import make_plan
from scaling.runs.directory import RunDir
from scaling.train.schedule import lr_after
from tests.support.configs import CPU

STEP = 4 * 16
SHORT, LONG = 10 * STEP, 16 * STEP


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extend")
    (root / "text").mkdir()
    for number in range(12):
        (root / "text" / f"{number}.txt").write_text(f"line {number} of many. " * 40)
    return root


def config_of(text: Path, root: str, n_tokens: int, *overrides: str) -> RunConfig:
    return compose(
        (
            "model.n_layers=1",
            "model.d_model=32",
            "model.n_heads=2",
            "tokenizer=byte",
            "data=text_files",
            f"data.path='{text}/text/*.txt'",
            f"data.cache_dir={text / 'cache'}",
            f"run.root={text / root}",
            f"train.n_tokens={n_tokens}",
            "train.global_batch_size=4",
            "train.seq_len=16",
            "train.sample_tokens=0",
            "checkpoint.every_steps=4",
            "checkpoint.keep_last=9",
            "layout=manual",
            "layout.dp=1",
            "layout.engine=reference",
            *CPU,
            *overrides,
        )
    )


def last_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    path = max(RunDir.for_config(config).checkpoints.glob("step-*"))
    return load_file(path / "rank-00000.safetensors")


@pytest.mark.parametrize(("kind", "begins"), [("constant", 10), ("wsd", 8)])
def test_the_extended_run_is_the_long_run(
    kind: str, begins: int, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and moments after the last step equal those of the long run from scratch, which has
    the same identity."""
    schedule = (f"schedule={kind}", "schedule.warmup_tokens=10%", f"run.name={kind}")
    short = config_of(text, "here", SHORT, *schedule)
    assert drive(short) == 0
    name = RunDir.for_config(short).path.name
    capsys.readouterr()
    assert drive(config_of(text, "here", LONG, *schedule, "dry_run=true")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"To continue from it, add train.extend={name}." in said
    long = config_of(text, "here", LONG, *schedule, f"train.extend={name}")
    assert long.schedule.warmup_tokens == SHORT // 10
    assert drive(long) == 0
    assert f"after step {begins} of 16" in " ".join(capsys.readouterr().out.split())
    scratch = config_of(text, "there", LONG, *schedule, f"schedule.warmup_tokens={SHORT // 10}")
    assert scratch.run_id == long.run_id
    assert drive(scratch) == 0
    found, wanted = last_weights(long), last_weights(scratch)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    # the same command again finds the run finished
    assert drive(long) == 0


def test_a_cosine_is_warmed_up_again_and_says_so(
    text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("schedule=cosine", "schedule.warmup_tokens=128", "run.name=cosine")
    short = config_of(text, "here", SHORT, *words)
    assert drive(short) == 0
    name = RunDir.for_config(short).path.name
    long = config_of(text, "here", LONG, *words, f"train.extend={name}")
    assert long.train.parent == f"{short.semantic_hash[:16]}@10"
    assert long.run_id != config_of(text, "here", LONG, *words).run_id
    assert rewarmed_from(long) == SHORT
    rate = lr_after(long, make_plan(long))
    peak = long.optim.lr
    assert rate(SHORT + 64) == pytest.approx(peak / 2)
    assert rate(SHORT + 128) == pytest.approx(peak)
    assert rate(LONG) == pytest.approx(peak * long.schedule.min_lr_ratio)
    capsys.readouterr()
    assert drive(long) == 0
    assert "warmed up again" in " ".join(capsys.readouterr().out.split())
    assert compose([]).train.extend is None

    refused = {
        ("model.n_layers=2",): ["model.n_layers=2, not 1", "init_from="],
        (f"train.n_tokens={SHORT}",): [f"train.n_tokens={SHORT}", f"has {SHORT} already"],
        ("schedule.warmup_tokens=384",): ["schedule.warmup_tokens=384, not 128"],
    }
    for more, said in refused.items():
        with pytest.raises(ConfigError) as error:
            config_of(text, "here", LONG, *words, f"train.extend={name}", *more)
        assert all(part in str(error.value) for part in said), str(error.value)
