"""The proof of an export: what was written is opened again by the target's own runtime and computes
the same logits.

Shapes: T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.errors import CheckpointError, ConfigError
from scaling.inference.trained import open_trained
from scaling.model import GenerativeModel, LanguageModel, MaskedModel, build_model
from scaling.parallel.part import part_of
from scaling.planner.cost.lengths import lengths
from scaling.weights.reader import Reader
from scaling.weights.source import find_source

TEXT = (
    "The quick brown fox jumps over the lazy dog. 1 + 2 = 3, and 17 * 3 = 51.\n"
    "def add(a, b):\n    return a + b\n\nDer Käfer läuft über die Straße; il fait déjà nuit."
)
"""What both sides read."""
_N_TOKENS = 64
"""Most tokens that are compared."""


@dataclass(frozen=True)
class Proof:
    """What a comparison found.

    difference: the largest of any logit. bound: what roundings of fp32 may set apart.
    rounding: the largest change of a logit by the dtype of the stored weights, null for fp32.
    logits_1TV: of the source for ids_1T, with its weights as stored.
    """

    runtime: str
    n_tokens: int
    difference: float
    bound: float
    rounding: float | None
    ids_1T: Tensor
    logits_1TV: Tensor

    def to_dict(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "n_tokens": self.n_tokens,
            "largest_logit_difference": self.difference,
            "bound": self.bound,
            "largest_change_by_rounding": self.rounding,
        }


def rounding_bound(config: RunConfig, scale: float) -> float:
    """How far two orders of summation in fp32 may set apart logits whose largest is `scale`.

    A sum of n products in fp32 is off by at most 8 sqrt(n) u of its size (Higham and Mary 2019,
    theorem 2.4, lambda = 8), and layers chain their sums: n is what one block sums, times blocks.
    """
    model, shape = config.model, lengths(config)
    n_block = 4 * model.d_model + model.ff_width + shape.inputs + shape.targets
    n_blocks = model.n_layers * (2 if model.traits.encoder_and_decoder else 1)
    return 8 * math.sqrt(2 * n_block * n_blocks) * torch.finfo(torch.float32).eps * max(scale, 1.0)


def compare(
    directory: Path,
    format: str,
    config: RunConfig,
    tokenizer: Tokenizer,
    reader: Reader,
    rounded: Callable[[str, Tensor], Tensor] | None,
) -> Proof:
    """Open what stands in `directory`, and compare its logits with those of the source.

    rounded: a parameter as it was stored; None: as it is. Raises CheckpointError for a difference
    beyond the bound.
    """
    asked = _question(config, tokenizer)
    found, runtime = (_transformers if format == "hf" else _ours)(directory, config, asked)
    model = _filled(config, reader)
    exact = logits_of(model, asked)
    if rounded is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(rounded(name, parameter.detach()))
    wanted = exact if rounded is None else logits_of(model, asked)
    difference = float((found - wanted).abs().max())
    bound = rounding_bound(config, float(wanted.abs().max()))
    rounding = None if rounded is None else float((wanted - exact).abs().max())
    if not difference <= bound:  # a NaN is none
        raise CheckpointError(
            f"{runtime} computes other logits from the export: they differ by {difference:.3g}, "
            f"and roundings by at most {bound:.3g}",
            f"format={format}",
            "Nothing was written. Report this with the model's config.yaml.",
        )
    ids_1T = asked["tokens"]
    return Proof(runtime, ids_1T.shape[1], difference, bound, rounding, ids_1T, wanted)


def _question(config: RunConfig, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """tokens_1T, and for an encoder with a decoder source_1U too."""
    ids = torch.from_numpy(tokenizer.encode_batch([TEXT])[0])[None]
    shape = lengths(config)
    if config.model.traits.encoder_and_decoder:
        return {
            "tokens": ids[:, : min(shape.targets, _N_TOKENS) // 2],
            "source": ids[:, : min(shape.inputs, _N_TOKENS)],
        }
    return {"tokens": ids[:, : min(shape.inputs, _N_TOKENS)]}


def _filled(config: RunConfig, reader: Reader) -> LanguageModel:
    model = build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.read(name, part_of(parameter)))
    return model.eval()


@torch.no_grad()
def logits_of(model: LanguageModel, asked: Mapping[str, Tensor]) -> Tensor:
    """logits_1TV in fp32."""
    if "source" in asked:
        assert isinstance(model, GenerativeModel)
        return model(asked["tokens"], source=model.encode(asked["source"])).float()
    assert isinstance(model, MaskedModel | GenerativeModel)
    logits: Tensor = model(asked["tokens"]).float()
    return logits


def _ours(directory: Path, config: RunConfig, asked: Mapping[str, Tensor]) -> tuple[Tensor, str]:
    file = directory / "model.gguf"
    word = f"gguf:{file}" if file.is_file() else str(directory)
    source = find_source(word, "", lambda text: None)
    from scaling import __version__

    return logits_of(
        open_trained(source, torch.device("cpu")).model, asked
    ), f"scaling {__version__}"


@torch.no_grad()
def _transformers(
    directory: Path, config: RunConfig, asked: Mapping[str, Tensor]
) -> tuple[Tensor, str]:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "the transformers library is not installed, and it has to prove the export",
            "format=hf",
            "Install it: pip install 'scaling-ladder[models]'; or pass check=weights, which "
            "compares the written weights alone.",
        ) from error
    from scaling.weights.source import read_config_file

    kind = getattr(transformers, read_config_file(directory)["architectures"][0])
    # our own files of a moment ago; the library is still kept from code, pickles and the network
    theirs = kind.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    ).eval()
    if "source" in asked:
        output = theirs(input_ids=asked["source"], decoder_input_ids=asked["tokens"])
    else:
        output = theirs(asked["tokens"])
    logits = output.logits if "logits" in output else output.prediction_logits
    return logits.float(), f"transformers {transformers.__version__}"
