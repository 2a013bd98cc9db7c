"""Every private part of DeepSpeed that the project relies on, with the reason; written for
DeepSpeed 0.19.

DeepSpeed may rename these in any release. Nothing here imports it before it is asked to.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Private:
    """An attribute that DeepSpeed does not document.

    module: where it is defined. name: dotted where it is a class's own. used_by: module of this
    package. set_on_instances: objects get it only when they are made, so that the module's source
    alone shows it.
    """

    module: str
    name: str
    used_by: str
    reason: str
    set_on_instances: bool = False

    @property
    def exists(self) -> bool:
        try:
            found: object = importlib.import_module(self.module)
        except ImportError:
            return False
        if self.set_on_instances:
            return self.name in _assigned(Path(str(vars(found)["__file__"])))
        for part in self.name.split("."):
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def _assigned(path: Path) -> set[str]:
    """Names of attributes that the code of a module assigns to objects, and fields of its
    dataclasses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


_RUNTIME = "deepspeed.runtime"
_STAGE_3 = f"{_RUNTIME}.zero.stage3"
_STAGE_1_AND_2 = f"{_RUNTIME}.zero.stage_1_and_2"
_BF16 = f"{_RUNTIME}.bf16_optimizer"
_PARAMETERS = f"{_RUNTIME}.zero.partition_parameters"
_FRAGMENT = "deepspeed.utils.tensor_fragment"
_GROUPS = "deepspeed.utils.groups"

_REPLACED = "replaced: an update beyond the limits is left out like one that is not finite"
_NORM = "the norm of a pipeline's gradients, as its optimiser computes it"
_IN_PLACE = "fp32 weights and moments are read and written in place, as fragments for any layout"
_RESET = "a destroyed engine leaves it behind, and the next one in the process would use it"
_TIES = "weights that several stages hold go by our names, not as layers of DeepSpeed's kind"

LEFT_BEHIND = (
    Private("deepspeed.comm.comm", "cdb", "library", _RESET),
    Private(_GROUPS, "mpu", "library", _RESET),
    Private(_GROUPS, "mesh_device", "library", _RESET),
    Private(_GROUPS, "_WORLD_GROUP", "library", _RESET),
    Private(_GROUPS, "_DATA_PARALLEL_GROUP", "library", _RESET),
    Private(_GROUPS, "_MODEL_PARALLEL_GROUP", "library", _RESET),
    Private(_GROUPS, "_TENSOR_MODEL_PARALLEL_GROUP", "library", _RESET),
    Private(_GROUPS, "_ZERO_PARAM_INTRA_PARALLEL_GROUP", "library", _RESET),
)
"""Globals of modules that are set to None between two engines of one process."""

PRIVATE = (
    *LEFT_BEHIND,
    Private("deepspeed.module_inject.layers", "set_autotp_mode", "library", _RESET),
    Private(
        "deepspeed.ops",
        "__compatible_ops__",
        "library",
        "switches a collective off that would be compiled on first use (27-63 s measured)",
    ),
    Private(
        _PARAMETERS,
        "convert_to_zero_parameters",
        "partition",
        "a model too large for a device is partitioned while it is built",
        set_on_instances=True,
    ),
    Private(f"{_RUNTIME}.pipe.module", "PipelineModule._index_tied_modules", "pipeline", _TIES),
    Private(
        f"{_RUNTIME}.pipe.module", "PipelineModule.get_tied_weights_and_groups", "pipeline", _TIES
    ),
    Private(
        f"{_RUNTIME}.pipe.module", "ds_pipe_replicated", "pipeline", _TIES, set_on_instances=True
    ),
    Private(
        f"{_RUNTIME}.pipe.topology",
        "PipeModelDataParallelTopology",
        "pipeline",
        "tensor parallel ranks beside pipeline stages",
    ),
    Private(
        f"{_RUNTIME}.pipe.engine",
        "PipelineEngine.reset_activation_shape",
        "pipeline",
        "buffers are kept from step to step while shapes are the same",
    ),
    Private(_STAGE_3, "DeepSpeedZeroOptimizer_Stage3._get_norm_groups", "refusal", _REPLACED),
    Private(_STAGE_1_AND_2, "DeepSpeedZeroOptimizer.scaled_global_norm", "refusal", _REPLACED),
    Private(_BF16, "BF16_Optimizer.get_grads_for_norm", "refusal", _REPLACED),
    Private(f"{_RUNTIME}.utils", "get_global_norm_of_tensors", "refusal", _NORM),
    Private(_BF16, "mpu", "refusal", _NORM, set_on_instances=True),
    Private(_BF16, "norm_type", "refusal", _NORM, set_on_instances=True),
    Private(
        _STAGE_3, "fp32_partitioned_groups_flat", "zero_states", _IN_PLACE, set_on_instances=True
    ),
    Private(_STAGE_3, "grad_position", "zero_states", _IN_PLACE, set_on_instances=True),
    Private(_STAGE_3, "DeepSpeedZeroOptimizer_Stage3.get_param_id", "zero_states", _IN_PLACE),
    Private(
        _STAGE_1_AND_2,
        "single_partition_of_fp32_groups",
        "zero_states",
        _IN_PLACE,
        set_on_instances=True,
    ),
    Private(_STAGE_1_AND_2, "DeepSpeedZeroOptimizer.update_lp_params", "zero_states", _IN_PLACE),
    Private(_BF16, "fp32_groups_flat_partition", "zero_states", _IN_PLACE, set_on_instances=True),
    Private(_BF16, "BF16_Optimizer.update_lp_params", "zero_states", _IN_PLACE),
    Private(
        "deepspeed.utils.mixed_precision_linkage",
        "_hp_mapping",
        "zero_states",
        _IN_PLACE,
        set_on_instances=True,
    ),
    Private(_FRAGMENT, "param_group_index", "zero_states", _IN_PLACE, set_on_instances=True),
    Private(_FRAGMENT, "lp_fragment_address", "zero_states", _IN_PLACE, set_on_instances=True),
    Private(_FRAGMENT, "hp_fragment_address", "zero_states", _IN_PLACE, set_on_instances=True),
    Private(_PARAMETERS, "ds_tensor", "zero_states", _IN_PLACE, set_on_instances=True),
    Private(_PARAMETERS, "ds_numel", "zero_states", _IN_PLACE, set_on_instances=True),
)
