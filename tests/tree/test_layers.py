"""Imports point downwards only, and each heavy library is imported in one place."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "scaling"

LAYERS = [
    {"units", "redaction", "errors", "screen", "terminal", "batch", "markup"},
    {"config"},
    {"runs"},
    {"parallel"},
    {"metrics"},
    {"planner"},
    {"arrangements"},
    {"channel"},
    {"model"},
    {"data"},
    {"checkpoint"},
    {"weights"},
    {"composition"},
    {"laws"},
    {"studies"},
    {"engine"},
    {"inference"},
    {"train"},
    {"worker"},
    {"rehearsal"},
    {"launch"},
    {"commands"},
    {"api"},
    {
        "run",
        "status",
        "generate",
        "fill",
        "fit",
        "predict",
        "plan",
        "prepare",
        "export",
        "rehearse",
        "completion",
    },
    {"__main__"},
]
"""Rows from the bottom: the floor, one row per package, the doors. A module imports from the rows
below its own, and from its own package; modules of the floor import one another."""
FLOOR = LAYERS[0]

HOMES = {
    "ray": {
        "launch/ray/cluster.py",
        "launch/ray/elastic.py",
        "launch/ray/embedded.py",
        "launch/ray/channel.py",
        "launch/ray/group.py",
        "launch/ray/pool.py",
        "launch/ray/warm_worker.py",
        "launch/ray/trainer.py",
        "launch/search/tune.py",
        "launch/search/trainable.py",
        "launch/search/callbacks.py",
    },
    "deepspeed": {
        "engine/deepspeed/library.py",
        "engine/deepspeed/partition.py",
        "engine/deepspeed/pipeline.py",
        "engine/deepspeed/refusal.py",
        "engine/deepspeed/zero.py",
    },
    "wandb": {"metrics/wandb_sink.py"},
    "tensorboard": {"metrics/tensorboard_sink.py"},
    "webdataset": {"data/read/shard_reader.py"},
    "fsspec": {"data/io/store.py", "data/io/hub.py"},
    "pyarrow": {"data/io/open_input.py"},
    "huggingface_hub": {"data/io/hub.py", "data/tokenizer/existing.py", "weights/hub_model.py"},
    "matplotlib": {
        "metrics/curve.py",
        "laws/figures/__init__.py",
        "laws/figures/budgets.py",
        "laws/figures/canvas.py",
        "laws/figures/goodness.py",
    },
    "gguf": {"weights/gguf_file.py"},
    "xllamacpp": {"inference/llama_cpp.py"},
    "transformers": {"inference/export_check.py"},
    "pynvml": {"planner/machines/detect.py"},
}
LIGHT = [
    "scaling.config.run_config",
    "scaling.composition.compose",
    "scaling.commands.help",
    "scaling.planner.run_plan",
    "scaling.planner.show.plan",
    "scaling.plan",
    "scaling.arrangements.table",
    "scaling.planner.measured.score",
    "scaling.metrics.record",
    "scaling.status",
    "scaling.generate",
    "scaling.fill",
    "scaling.export",
    "scaling.weights.source",
    "scaling.data.shards",
    "scaling.prepare",
    "scaling.fit",
    "scaling.predict",
    "scaling.rehearse",
    "scaling.completion",
    "scaling.__main__",
    "scaling.api",
    "scaling.run",
    "scaling.laws.analysis",
    "scaling.laws.report",
    "scaling.laws.recommend",
    "scaling.laws.answer",
    "scaling.studies.trials",
    "scaling.studies.remaining",
    "scaling.studies.results",
]


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def top(name: str) -> str:
    """The package or door of a module: scaling.planner.run_plan -> planner."""
    return name.split(".")[1]


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(name of a module, line) of every import, those for type checking and those inside functions
    included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.module is not None
            submodules = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "scaling"
                else [node.module]
            )
            yield from ((name, node.lineno) for name in submodules)


def upward_arrows(layers: list[set[str]]) -> list[str]:
    place = {name: number for number, layer in enumerate(layers) for name in layer}
    arrows = []
    for path in modules():
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name, line in imports(ast.parse(path.read_text())):
            if (
                name.startswith("scaling.")
                and (other := top(name)) != own
                and not {own, other} <= FLOOR
                and place.get(other, -1) >= place[own]  # a name of the package itself is below all
            ):
                arrows.append(
                    f"{path.relative_to(ROOT)}:{line} imports {name}, which is not below {own}"
                )
    return arrows


def test_every_module_has_its_layer() -> None:
    named = {name for layer in LAYERS for name in layer}
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in modules()} == named


def test_imports_point_downwards() -> None:
    assert upward_arrows(LAYERS) == []


@cache
def dependencies() -> dict[str, set[str]]:
    """Modules of the package that each one imports, inside functions included."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules()}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        wanted = {other for other, _ in imports(tree)} | {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        found[name] = wanted & names.keys() - {name}
    return found


@pytest.mark.parametrize(
    "package",
    [
        "metrics",
        "config",
        "runs",
        "composition",
        "data",
        "model",
        "parallel",
        "planner",
        "laws",
        "studies",
        "worker",
        "launch",
    ],
)
def test_no_modules_of_a_package_import_one_another(package: str) -> None:
    # a package's own __init__ gathers its modules, which may import each other from it
    found = {
        name: {other for other in others if not name.startswith(f"{other}.")}
        for name, others in dependencies().items()
        if name.startswith(f"scaling.{package}.")
    }
    graphlib.TopologicalSorter(found).prepare()


def test_an_upward_import_is_seen() -> None:
    assert upward_arrows(LAYERS[::-1]), "upside down, almost every import points upwards"


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_are_imported_in_one_place(library: str) -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        for name, _ in imports(ast.parse(path.read_text()))
        if name.split(".")[0] == library
    }
    assert found == HOMES[library]


def test_planning_loads_neither_torch_nor_ray_nor_deepspeed() -> None:
    code = (
        f"import sys, {', '.join(LIGHT)}; print(sorted({{'torch', 'ray', 'deepspeed', "
        f"'wandb'}} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
