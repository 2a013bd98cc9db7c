"""The numbers of the planner that no data sheet gives: a few fitted on published measurements, the
rest known or assumed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Shares of a peak, seconds, bytes.

    Fitted by `tools/fit_planner.py` on the ten sources that docs/planner.md names (2182 rows), held
    by a prior to a guess:

    gemm_<generation>  share of the dense peak that the arithmetic of a product reaches (Blackwell:
                       assumption)
    fp8                factor on the rate of products in 8 bits, casts included
    bandwidth          share of the memory bandwidth that kernels reach
    kernel_s           host seconds to launch a kernel
    fabric_inter       share of a link's rate that collectives reach between nodes
    context_bytes      of CUDA and its libraries, on a GPU
    ring_bytes         of NCCL's buffers, for each kind of group (tp, pp, dp) that a rank belongs to
    fragments          memory reserved for each byte of short-lived tensors
    time_spread, calibrated_spread, memory_spread  half of an 80 % interval, in the logarithm, of
      errors on sources that the fit
                       had not seen: as it is, with one row of a source as its scale, and of memory
    between, within    standard deviation of the logarithm of predicted over measured rates, between
                       unseen sources and within one

    Not fitted, since letting them free made no unseen source better:

    gemm_memory        part of a product's memory time that does not hide behind its arithmetic:
                       assumption
    misaligned         factor on a product of which a width is no multiple of 64: assumption
    unaligned          the same for 8: 3.2 in vTrain's rows of an odd vocabulary (docs/planner.md)
    attention_share    share of the peak of FlashAttention 1 on Ampere: 25 to 40 % (Dao 2023,
                       arXiv:2307.08691, section 1)
    attention_hopper   factor on it on Hopper and later, whose asynchronous units it leaves idle: 35
                       % is left of
                       FlashAttention 2's 50 to 73 % (Shah et al. 2024, arXiv:2407.08608, abstract)
    score_bytes        read and written in the forward for each score where T x T matrices are kept:
                       by the product 2, the fused
                       softmax 3 to 4, dropout 5, the second product 2, of which the cache serves
                       some: assumption
    fabric_intra       share of a link's rate that collectives reach within a node: assumption
    hop_s              seconds that a ring of collectives takes for each of its ranks: assumption
    latency_s          seconds that a collective takes beside its traffic: assumption
    overlap            share of a window of compute behind which traffic hides: assumption
    step_s             seconds of a step beside all else, for optimiser, loss scale and logging:
                       assumption
    jitter             part of a step lost for each doubling of the nodes: assumption
    usable             part of a device's memory that is left to a process, its context included:
                       79.2 of 80 GiB on an A100
    """

    gemm_volta: float = 0.6793
    gemm_ampere: float = 0.8087
    gemm_hopper: float = 0.6782
    fp8: float = 1.484
    bandwidth: float = 0.611
    kernel_s: float = 2.014e-05
    fabric_inter: float = 0.3249
    context_bytes: float = 1.009e09
    ring_bytes: float = 7.034e08
    fragments: float = 1.329
    time_spread: float = 0.1504
    calibrated_spread: float = 0.1344
    memory_spread: float = 0.1261
    between: float = 0.05318
    within: float = 0.05795

    gemm_blackwell: float = 0.70
    gemm_memory: float = 0.5
    misaligned: float = 1.25
    unaligned: float = 3.0
    attention_share: float = 0.32
    attention_hopper: float = 0.6
    score_bytes: float = 10.0
    fabric_intra: float = 0.7
    hop_s: float = 3e-06
    latency_s: float = 3e-05
    overlap: float = 0.7
    step_s: float = 0.01
    jitter: float = 0.005
    usable: float = 0.99

    @property
    def memory_sigma(self) -> float:
        """Standard deviation of the logarithm of needed over predicted memory: 80 % of a normal lie
        within 1.28 of them."""
        return self.memory_spread / 1.2816


CONSTANTS = Constants()
