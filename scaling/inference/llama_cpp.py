"""llama.cpp as a judge of GGUF files, through the package xllamacpp where it is installed.

Shapes: T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scaling.errors import CheckpointError

LENGTHS = (4, 8, 16, 24)
"""Tokens of the fixed text behind which the next one is compared."""
_N_BEST = 8
LARGEST = {"fp32": 0.02, "fp16": 0.03, "bf16": 0.1, "q8_0": 0.3}
"""Largest difference of a log-probability by dtype of the weights.

llama.cpp multiplies weights with activations that it rounds to the same type. Eight times or more
what was measured for small random models of llama, gpt2 and qwen2 on a CPU: 0.0025, 0.0029, 0.0091
and 0.028."""


def llama_cpp(path: Path, ids: Sequence[int], logits_TV: Tensor, dtype: str) -> dict[str, Any]:
    """Compare llama.cpp's log-probabilities of the next token with ours; empty where xllamacpp is
    not installed.

    ids: tokens of the fixed text. logits_TV: ours for them, with the weights as stored. Raises
    CheckpointError beyond `LARGEST`.
    """
    try:
        server = Server(path)
    except ImportError:
        return {}
    ours_TV, differences, equal = logits_TV.log_softmax(dim=-1), list[float](), 0
    for length in (length for length in LENGTHS if length <= len(ids)):
        best = server.next_tokens(ids[:length], _N_BEST)
        differences += [abs(p - float(ours_TV[length - 1, token])) for token, p in best.items()]
        equal += bool(best) and max(best, key=lambda t: best[t]) == int(
            ours_TV[length - 1].argmax()
        )
    largest = max(differences, default=None)
    if largest is not None and not largest <= LARGEST[dtype]:
        raise CheckpointError(
            f"llama.cpp computes other log-probabilities from the export: they differ by "
            f"{largest:.3g}, and {LARGEST[dtype]} is allowed for {dtype}",
            "format=gguf",
            "Nothing was written. Report this with the model's config.yaml.",
        )
    return {
        "llama_cpp": server.version,
        "largest_log_probability_difference": largest,
        "log_probabilities": len(differences),
        "likeliest_token_equal": equal,
    }


class Server:
    """One file opened by llama.cpp in this process, on one core, its cache in fp32. It listens on
    127.0.0.1 alone."""

    def __init__(self, path: Path, n_context: int = 256) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = n_context, 1, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.version = f"xllamacpp {xllamacpp.__version__}"
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise CheckpointError(f"llama.cpp cannot open {path.name}: {error}") from error

    def next_tokens(self, ids: Sequence[int], n: int) -> dict[int, float]:
        """The n likeliest next tokens with their log-probabilities; none where the likeliest is
        part of a character, of which llama.cpp reports nothing."""
        (content,) = self._answer(list(ids), 1, n) or ({},)
        return {int(t["id"]): float(t["logprob"]) for t in content.get("top_logprobs", ())}

    def greedy(self, prompt: str, n_tokens: int) -> list[int]:
        """Token ids of the likeliest continuation of a text; end-of-text ends nothing."""
        return [int(token["id"]) for token in self._answer(prompt, n_tokens, 1)]

    def _answer(self, prompt: str | list[int], n_tokens: int, n: int) -> list[dict[str, Any]]:
        asked = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
        asked |= {"cache_prompt": False, "logprobs": n, "n_probs": n}
        answer = self._server.handle_completions(asked)
        if "choices" not in answer:
            raise CheckpointError(f"llama.cpp answers {str(answer)[:200]}")
        found: list[dict[str, Any]] = (answer["choices"][0]["logprobs"] or {}).get("content", [])
        return found
