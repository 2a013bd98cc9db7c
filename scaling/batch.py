"""What a model is given, and what its loss gives back. Objectives make batches, engines carry them,
families read them.

Shapes: B sequences, T positions, U positions of an encoder beside a decoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""A target that is not scored: ignore_index of torch.nn.functional.cross_entropy."""

PADDING = -1
"""Document number of a position that holds nothing."""


class Batch(NamedTuple):
    """Inputs and what they are to predict; int64 tensors, None where an objective has no use for
    one.

    tokens_BT            inputs; of the decoder, where there are an encoder and a decoder
    targets_BT           the token that each position predicts; IGNORED is not scored
    source_BU            inputs of the encoder
    documents_BT         number of the document of each position, PADDING for none; positions attend
                         to their own document only, also from decoder to encoder. None: a row is
                         one document
    source_documents_BU  the same of source_BU
    segments_BT          sentence A (0) or B (1) of BERT
    classes_B            class of the whole sequence (sentence order); IGNORED is not scored
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    source_BU: Tensor | None = None
    documents_BT: Tensor | None = None
    source_documents_BU: Tensor | None = None
    segments_BT: Tensor | None = None
    classes_B: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        return Batch._make(
            None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self
        )

    def rows(self, rows: Tensor | slice) -> Batch:
        """Some of the sequences."""
        return Batch._make(None if tensor is None else tensor[rows] for tensor in self)

    @property
    def n_targets(self) -> int:
        """Scored targets. Waits for the device when the batch is on one."""
        return int((self.targets_BT != IGNORED).sum())


class Loss(NamedTuple):
    """Sums over the scored targets of a batch, so that sums of parts are the sum of the whole.

    nats       cross-entropy (fp32): what is reported and compared
    n_targets  how many targets it is summed over (int64)
    objective  what training minimises (fp32): nats, or with label smoothing the smoothed
               cross-entropy, and what a family
               adds to it. A term of whole sequences (balance of experts, sentence order) is counted
               once for each scored target of its sequence; so however a global batch is cut into
               micro-batches and ranks, the sum of objectives over the number of targets is the
               same.
    """

    nats: Tensor
    n_targets: Tensor
    objective: Tensor
