"""Every layout begins with the weights of the same source, each rank reading its own part."""

from __future__ import annotations

import numpy as np
import pytest

from scaling.runs.directory import RunDir
from scaling.weights.source import find_source
from tests.engine.test_layout_parity import LAYOUTS, assert_follows_in_fp32
from tests.inference.test_export import save
from tests.support.layout_runs import SHAPE, reference, run
from tests.support.objectives import byte_tokenizer, objective

N_STEPS = 2


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of a run that begins at a checkpoint with weights that all matter."""
    root = tmp_path_factory.mktemp("source")
    config, _ = objective(*SHAPE, "objective=causal_lm", f"run.root={root}")
    run_dir = RunDir.for_config(config).create()
    run_dir.write_config(config)
    run_dir.write_tokenizer(byte_tokenizer().to_bytes())
    save(run_dir, config, 5)
    word = f"{run_dir.path}@5"
    digest = find_source(word, str(root), pytest.fail).content_hash
    # with the hash, as a run that has begun, so that the tokenizer may be named too
    return "objective=causal_lm", f"init_from={word}", f"init_from.content_hash={digest}"


@pytest.mark.parametrize("name", ["tp2", "pp2", "zero3"])
def test_a_layout_begins_with_the_weights_of_one_process(name: str, words: tuple[str, ...]) -> None:
    """Compares in fp32, because the reader of weight files knows no float64."""
    expected = reference(N_STEPS, *words, exact=False)
    random = reference(N_STEPS, "objective=causal_lm", exact=False)
    assert not np.isclose(expected[0], random[0], rtol=1e-2), "the source's weights were not read"
    found = run(words, LAYOUTS[name], 0, N_STEPS, exact=False)
    assert_follows_in_fp32(found, expected, N_STEPS)
