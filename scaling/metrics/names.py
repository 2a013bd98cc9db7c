"""Names of metrics, the same in metrics.jsonl, W&B, TensorBoard and code. Units ride in the name;
losses are nats per token."""

from __future__ import annotations

from typing import Final

# Every record carries these four: a scaling law is plotted against tokens and FLOPs.
STEP: Final = "step"
N_TOKENS: Final = "n_tokens"
FLOPS: Final = "flops"
WALL_S: Final = "wall_s"
POSITION: Final = (STEP, N_TOKENS, FLOPS, WALL_S)

TRAIN_LOSS: Final = "train/loss"
TRAIN_LR: Final = "train/lr"
TRAIN_GRAD_NORM: Final = "train/grad_norm"
TRAIN_TOKENS: Final = "train/tokens"
TRAIN_SEQUENCES: Final = "train/sequences"
TRAIN_SKIPPED_STEPS: Final = "train/skipped_steps"

VAL_LOSS: Final = "val/loss"
VAL_PPL: Final = "val/ppl"
VAL_BITS_PER_BYTE: Final = "val/bits_per_byte"

TOKENS_PER_S: Final = "throughput/tokens_per_s"
STEP_TIME_S: Final = "throughput/step_time_s"
DATA_WAIT_S: Final = "throughput/data_wait_s"
CHECKPOINT_STALL_S: Final = "throughput/checkpoint_stall_s"

DEVICE_TOKENS_PER_S: Final = "throughput/device/tokens_per_s"
DEVICE_TFLOPS: Final = "throughput/device/tflops"
DEVICE_MFU: Final = "throughput/device/mfu"

MEMORY_PEAK_GB: Final = "memory/peak_gb"
ENERGY_KWH: Final = "energy/kwh"
ENERGY_KG_CO2E: Final = "energy/kg_co2e"
COST_USD: Final = "cost/usd"

RUN_RESTARTS: Final = "run/restarts"
RUN_WORLD_SIZE: Final = "run/world_size"
RUN_GOODPUT: Final = "run/goodput"


def data_share(component: str) -> str:
    """The share of a mixture's sequences so far that came from this component."""
    return f"data/share/{component}"


def data_epochs(component: str) -> str:
    """How often a mixture has read the whole component."""
    return f"data/epochs/{component}"


def eval_metric(task: str, metric: str) -> str:
    """The name of a task's metric: eval_metric("lambada", "accuracy") is
    "eval/lambada/accuracy"."""
    return f"eval/{task}/{metric}"
