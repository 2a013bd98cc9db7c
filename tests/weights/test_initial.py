"""A run that begins with the weights of a source: shape and identity follow, and every rank reads
its own part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scaling.composition.compose import compose, words_for
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.data.objective import make_batch_for
from scaling.data.preflight import check_tokenizer
from scaling.data.prepare.cached import ensure_corpus
from scaling.engine.reference import ReferenceEngine
from scaling.errors import ConfigError
from scaling.launch.run import drive
from scaling.metrics.record import read_metrics
from scaling.model import build_model, initialise
from scaling.parallel.part import Part
from scaling.runs.directory import RunDir
from scaling.weights.initial import check_source, given_weights
from scaling.weights.reader import open_reader
from tests.inference.test_export import make_run, model_of, save
from tests.support.configs import CPU
from tests.support.layout_runs import REFERENCE
from tests.weights.test_source import T, make, opened


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of the transformers library with random weights, and a run of ours."""
    root = tmp_path_factory.mktemp("sources")
    for name in ("llama", "gpt2", "bert"):
        make(root / name, name)
    run_dir, config = make_run(root / "runs", "llama")
    for step in (3, 7):
        save(run_dir, config, step)
    return root


def begun(source: str | Path, *overrides: str) -> RunConfig:
    return compose([f"init_from={source}", *CPU, *overrides])


def weights_of(config: RunConfig) -> dict[str, torch.Tensor]:
    """What one process begins with."""
    engine = ReferenceEngine(config, REFERENCE, torch.device("cpu"))
    return {name: value.detach() for name, value in engine.model.named_parameters()}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_shape_and_tokenizer_follow_and_weights_are_those_of_the_source(
    name: str, sources: Path
) -> None:
    config = begun(f"hf:{sources / name}", "model.dropout=0.1", "train.global_batch_size=4")
    model, trained = config.model, opened(f"hf:{sources / name}")
    assert (model.n_layers, model.d_model, model.n_heads, model.name) == (2, 48, 6, name)
    assert (model.dropout, config.train.seq_len, config.vocab_size) == (0.1, T, 321)
    assert config.tokenizer.name == str(sources / name / "tokenizer.json")
    wanted = dict(trained.model.named_parameters())
    found = weights_of(config)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert check_source(config) == []


def test_a_run_begins_at_the_checkpoint_of_another(sources: Path) -> None:
    (run,) = (sources / "runs").iterdir()
    first, last = begun(f"{run}@3"), begun(run)
    assert last.init_from.source == f"{run}@7"
    assert first.run_id != last.run_id
    for config, step in ((first, 3), (last, 7)):
        assert config.model.name == "gpt_nano"
        wanted = dict(model_of(config, step).named_parameters())
        assert all(torch.equal(value, wanted[key]) for key, value in weights_of(config).items())


def test_identity_follows_the_content_and_not_the_place(sources: Path, tmp_path: Path) -> None:
    shutil.copytree(sources / "llama", tmp_path / "copy")
    words = ("model.name=same", "train.n_tokens=1000")
    first = begun(f"hf:{sources / 'llama'}", *words)
    assert begun(f"hf:{tmp_path / 'copy'}", *words).run_id == first.run_id
    make(tmp_path / "other", "llama", rms_norm_eps=1e-5)
    assert begun(f"hf:{tmp_path / 'other'}", *words).run_id != first.run_id
    # the words that a study or a person repeats make the same run again
    assert compose([*words_for(first), *CPU]).run_id == first.run_id
    assert RunConfig.model_validate(first.model_dump(mode="json")) == first


CONTRADICTIONS = {
    "model.n_layers=3": ["model.n_layers=3", "model.n_layers=2"],
    "model=gpt_1b": ["model=gpt_1b", "model.n_layers=2"],
    "attention=local": ["attention.kind=local", "attention.kind=full"],
    "position=learned": ["position.kind=learned", "position.kind=rope"],
    "tokenizer=byte": ["tokenizer=byte", "a tokenizer of its own"],
    "train.seq_len=64": ["train.seq_len=64", "reads 32 positions", "position.scaling"],
    "init_from.content_hash=abc": ["other content", "abc"],
}


@pytest.mark.parametrize("word", CONTRADICTIONS)
def test_what_contradicts_the_source_is_named_with_it(word: str, sources: Path) -> None:
    with pytest.raises(ConfigError) as error:
        begun(f"hf:{sources / 'llama'}", word)
    assert all(part in str(error.value) for part in (*CONTRADICTIONS[word], "init_from"))


def test_longer_sequences_where_positions_are_scaled(sources: Path) -> None:
    scaled = ("position.scaling=yarn", "position.scaling_factor=2")
    config = begun(f"hf:{sources / 'llama'}", "train.seq_len=64", *scaled)
    assert (config.train.seq_len, config.position.scaling) == (64, "yarn")
    with pytest.raises(ConfigError, match=r"train.seq_len=16.*reads 32 positions(.|\n)*=32\."):
        begun(f"hf:{sources / 'gpt2'}", "train.seq_len=16")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_part_of_every_parameter_is_that_of_the_whole(name: str, sources: Path) -> None:
    """Parts along rows and columns, as tensor parallel ranks hold them, of fused and transposed
    matrices too."""
    trained = opened(f"hf:{sources / name}")
    reader = open_reader(trained.source, trained.config)
    for parameter, value in trained.model.named_parameters():
        for dim in range(value.ndim):
            for rank in range(2):
                part = Part.nth(tuple(value.shape), dim, rank, 2)
                assert torch.equal(reader.read(parameter, part), part.of(value)), (parameter, part)


def test_a_head_that_is_missing_is_made_anew_where_that_is_allowed(
    sources: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForMaskedLM.from_pretrained(sources / "bert")
    theirs.bert.save_pretrained(tmp_path)
    shutil.copyfile(sources / "bert" / "tokenizer.json", tmp_path / "tokenizer.json")
    refused = begun(f"hf:{tmp_path}")
    with pytest.raises(ConfigError, match=r"it lacks masked_head.bias, (.|\n)*missing=allow"):
        check_source(refused)
    config = begun(f"hf:{tmp_path}", "init_from.missing=allow")
    (note,) = check_source(config)
    assert "Initialised" in note
    assert config.run_id != begun(f"hf:{sources / 'bert'}").run_id
    random = build_model(config)
    initialise(random, config.train.seed)
    wanted, found = dict(random.named_parameters()), weights_of(config)
    source = dict(opened(f"hf:{sources / 'bert'}").model.named_parameters())
    for name, value in found.items():
        assert torch.equal(value, (wanted if name.startswith("masked_head") else source)[name])


def test_a_run_without_a_source_has_random_weights() -> None:
    assert given_weights(compose(CPU)) is None
    with pytest.raises(ConfigError, match="need init_from=SOURCE"):
        compose(["init_from.missing=allow", *CPU])


def test_continued_training_resumes_bit_for_bit(sources: Path, tmp_path: Path) -> None:
    """The driver's first loss is the source's, and a run that lost its last checkpoint writes the
    same one again."""
    (tmp_path / "text").mkdir()
    for number in range(12):
        (tmp_path / "text" / f"{number}.txt").write_text(f"line {number} of many. " * 40)
    (run,) = (sources / "runs").iterdir()
    config = begun(
        f"{run}@7",
        f"data.path='{tmp_path}/text/*.txt'",
        "data=text_files",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"run.root={tmp_path / 'runs'}",
        "train.n_tokens=1280",
        "train.global_batch_size=4",
        "train.log_every=1",
        "train.sample_tokens=0",
        "checkpoint.every_steps=5",
        "schedule.warmup_tokens=200",
        "layout=manual",
        "layout.dp=1",
        "layout.engine=reference",
    )
    assert drive(config) == 0
    run_dir = RunDir.for_config(config)
    first, *_ = read_metrics(run_dir.metrics)
    # random weights begin at ln 321 = 5.8; these large ones are far from it
    corpus = Corpus.open(ensure_corpus(config.data, config.tokenizer))
    ks = np.arange(4)
    with corpus.stream(config, "train") as stream:
        batch = make_batch_for(config, corpus.load_tokenizer())(stream.read(ks), ks)
    swapped = json.loads((run / "tokenizer.json").read_text())
    vocab = swapped["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "swapped.json").write_text(json.dumps(swapped))
    other = config.tokenizer.model_copy(
        update={"lossy": "allow", "name": str(tmp_path / "swapped.json")}
    )
    check_tokenizer(config, corpus)
    with pytest.raises(ConfigError, match=r"the tokens of .* are not those of init_from="):
        check_tokenizer(config.model_copy(update={"tokenizer": other}), corpus)
    nats, n_targets, _ = opened(f"{run}@7").model.loss(batch)
    assert first["train/loss"] == pytest.approx(float(nats.detach() / n_targets), rel=1e-5)
    last = run_dir.checkpoints / "step-00000010"
    written = load_file(last / "rank-00000.safetensors")  # the order of its header is by chance
    shutil.rmtree(last)
    (run_dir.path / "summary.json").unlink()
    assert drive(config) == 0
    again = load_file(last / "rank-00000.safetensors")
    assert again.keys() == written.keys()
    assert all(torch.equal(again[name], value) for name, value in written.items())
