"""Sizes of the tiles in which the model computes: what they cost is known before torch is loaded,
so model and planner read them here."""

from __future__ import annotations

PIECE = 512
"""Queries whose scores are masked at once: assumption, enough rows for a matrix product to be
efficient."""
LINEAR_CHUNK = 64
"""Positions of linear attention whose products are formed pair by pair before sums of outer
products take over. Any number gives the same values."""
CHUNKS_PER_WINDOW = 2
"""Chunks into which local attention cuts its window: with more, fewer scores are formed in vain,
but matrix products are smaller."""
LOSS_CHUNK_ROWS = {"cpu": 256, "gpu": 4096}
"""Tokens whose logits are held at once. CPU: the fastest of 64 to 1024, see `linear_cross_entropy`.
GPU: assumption, enough rows to fill the matrix units; 1.5 GB of fp32 logits for 100k entries."""
