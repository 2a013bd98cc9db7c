"""scaling.export: weights of any layout as one model, for us and for the transformers library, with
the proof that both compute the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from scaling import export
from scaling.checkpoint.fragments import KINDS, Fragment, Snapshot
from scaling.checkpoint.manifest import Manifest
from scaling.checkpoint.state import TrainState
from scaling.checkpoint.store import commit, describe_file, partial_path
from scaling.config.run_config import RunConfig
from scaling.inference import export_files
from scaling.model import LanguageModel, build_model, initialise
from scaling.parallel.part import Part
from scaling.runs.directory import RunDir
from scaling.units import parse_bytes
from tests.support.configs import composed
from tests.support.exact import rounding_bound
from tests.support.objectives import BYTES, byte_tokenizer

SHAPE = ("model.n_layers=2", "model.d_model=48", "model.n_heads=6", "train.seq_len=32", *BYTES)
GPT = ("model.activation=gelu", "model.norm=layernorm", "model.bias=true", "position=learned")
RUNS = {
    "gpt2": (*SHAPE, *GPT),
    "llama": (
        *SHAPE,
        "model.n_kv_heads=2",
        "model.d_ff=80",
        "model.tie_embeddings=false",
        "model.d_head=12",
    ),
    "bert": ("model=bert_tiny", *SHAPE),
    "t5": ("model=t5_tiny", *SHAPE, "model.d_ff=80", "model.d_head=12", "position.max_distance=24"),
    "geglu": (*SHAPE, "model.activation=geglu"),
}

Command = Callable[..., tuple[int, str, str]]


def model_of(config: RunConfig, step: int) -> LanguageModel:
    """A model of weights large enough for each to matter; another at every step."""
    model = build_model(config).eval()
    initialise(model, seed=step)
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def fragments_of(
    model: LanguageModel, tp_rank: int, dp_rank: int, tp: int, dp: int
) -> list[Fragment]:
    """What a rank of a layout holds: matrices in parts, one kind along their rows and another along
    their columns."""
    found = []
    for name, value in model.named_parameters():
        shape = tuple(value.shape)
        part = (
            Part.nth(shape, int(name.endswith(("o.weight", "down.weight"))), tp_rank, tp)
            if len(shape) == 2
            else Part.whole(shape)
        )
        if tp_rank and len(shape) != 2:
            continue
        low, high = (part.numel * r // dp for r in (dp_rank, dp_rank + 1))
        run = part.of(value).reshape(-1)[low:high]
        found.append(Fragment(name, part, low, dict.fromkeys(KINDS, run)))
    return found


def save(run_dir: RunDir, config: RunConfig, step: int, *, tp: int = 2, dp: int = 3) -> None:
    model = model_of(config, step)
    partial = partial_path(run_dir.checkpoints, step)
    partial.mkdir(parents=True)
    files = {}
    for rank in range(tp * dp):
        path = partial / f"rank-{rank:05d}.safetensors"
        Snapshot.of(fragments_of(model, rank // dp, rank % dp, tp, dp), optimizer_step=step).write(
            path
        )
        files[path.name] = describe_file(path)
    state = TrainState(step=step, n_tokens=512 * step, next_sequence=8 * step).to_dict()
    commit(
        run_dir.checkpoints,
        Manifest(config.semantic_hash, "b" * 64, step, state, {"tp": tp, "dp": dp}, files),
    )


def make_run(root: Path, name: str, *overrides: str) -> tuple[RunDir, RunConfig]:
    config = composed(*(overrides or RUNS[name]), f"run.root={root}", f"run.name={name}")
    run_dir = RunDir.for_config(config).create()
    run_dir.write_config(config)
    run_dir.write_tokenizer(byte_tokenizer().to_bytes())
    return run_dir, config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each family, with checkpoints of two steps."""
    root = tmp_path_factory.mktemp("export")
    for name in RUNS:
        run_dir, config = make_run(root, name)
        for step in (3, 7):
            save(run_dir, config, step)
    return root


@pytest.fixture
def command(root: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run scaling.export: (exit code, output, what was said beside it)."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = export.main([f"run.root={root}", *words])
        return code, *capsys.readouterr()

    return call


def weights_in(directory: Path) -> dict[str, Tensor]:
    return {
        name: value
        for path in sorted(directory.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def expected(name: str, step: int) -> dict[str, Tensor]:
    return {
        key: value.detach()
        for key, value in model_of(composed(*RUNS[name]), step).named_parameters()
    }


@pytest.mark.parametrize("name", RUNS)
def test_every_weight_is_there_and_what_describes_them(
    name: str, command: Command, root: Path, tmp_path: Path
) -> None:
    code, out, said = command(f"from={name}", f"to={tmp_path / 'made'}")
    assert (code, out) == (0, f"{tmp_path / 'made'}\n")
    assert "after step 7" in said
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "config.json",
        "made",
        "metadata.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    found, wanted = weights_in(tmp_path / "made"), expected(name, 7)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert len({path.stat().st_mode for path in (tmp_path / "made").iterdir()}) == 1, (
        "all as the umask says"
    )
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["model"] == composed(*RUNS[name]).model.model_dump(mode="json")
    assert (config["vocab_size"], config["seq_len"], config["dtype"]) == (321, 32, "fp32")
    (run,) = root.glob(f"{name}-*")
    metadata = json.loads((tmp_path / "made" / "metadata.json").read_text())
    assert {key: metadata[key] for key in ("run", "step", "n_tokens")} == {
        "run": run.name,
        "step": 7,
        "n_tokens": 7 * 512,
    }
    assert metadata["semantic_hash"].startswith(run.name.rpartition("-")[2])
    assert (tmp_path / "made" / "tokenizer.json").read_bytes() == (
        run / "tokenizer.json"
    ).read_bytes()


def test_an_earlier_step_in_several_files_of_half_the_size(
    command: Command, tmp_path: Path
) -> None:
    made, limit = tmp_path / "a" / "made", 30_000
    assert command("from=gpt2@3", f"to={made}", "dtype=bf16", "max_shard_size=30 kB")[0] == 0
    wanted = expected("gpt2", 3)
    index = json.loads((made / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert files == sorted(path.name for path in made.glob("*.safetensors"))
    assert index["weight_map"].keys() == wanted.keys()
    for path in (made / name for name in files):
        content = load_file(path)
        assert sum(value.numel() * 2 for value in content.values()) <= limit or len(content) == 1
        for name, value in content.items():
            assert index["weight_map"][name] == path.name
            assert torch.equal(value, wanted[name].bfloat16())
    assert index["metadata"]["total_size"] == sum(value.numel() * 2 for value in wanted.values())
    assert len(files) < len(wanted), "more than one weight to a file"


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
@torch.no_grad()
def test_transformers_opens_it_and_computes_the_same(
    name: str, command: Command, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    assert command(f"from={name}", f"to={tmp_path}", "format=hf", "max_shard_size=40kB")[0] == 0
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    auto = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}.get(
        name, "AutoModelForCausalLM"
    )
    theirs, report = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours: Any = model_of(composed(*RUNS[name]), 7)
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(1))
    if name == "t5":
        logits, wanted = (
            theirs(input_ids=tokens, decoder_input_ids=tokens[:, :9]).logits,
            ours(tokens[:, :9], source=ours.encode(tokens)),
        )
    else:
        logits, wanted = theirs(tokens).logits, ours(tokens)
    assert float(wanted.std()) > 0.3
    # Both in fp32: layers chain sums of D, T and d_ff terms (`test_model_parity.py` is in float64).
    bound = rounding_bound(
        n_terms=8 * 48 + 20 + 4 * 48, n_layers=6, scale=float(wanted.detach().abs().max())
    )
    torch.testing.assert_close(logits, wanted, atol=bound, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "for x in käfer:\n  🦊  pass"
    assert (
        tokenizer.encode(text, add_special_tokens=False)
        == byte_tokenizer().encode_batch([text])[0].tolist()
    )
    assert tokenizer.decode(byte_tokenizer().encode_batch([text])[0].tolist()) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (
        256,
        257,
        260,
    )


def test_the_proof_and_the_card_are_written(command: Command, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    code, _, said = command("from=llama", f"to={tmp_path / 'made'}", "format=hf", "dtype=bf16")
    assert code == 0
    assert "transformers" in said
    metadata = json.loads((tmp_path / "made" / "metadata.json").read_text())
    check = metadata["check"]
    assert 0 <= check["largest_logit_difference"] <= check["bound"] < 1e-2
    # bf16 keeps 8 bits, so rounding the weights shows far above the bound
    assert check["largest_change_by_rounding"] > check["bound"]
    assert metadata["source"]["kind"] == "run"
    card = (tmp_path / "made" / "README.md").read_text()
    for part in ("license: other", "tokens seen | 3.58 k (3584)", "steps | 7", "rate 0.0025"):
        assert part in card, card
    generation = json.loads((tmp_path / "made" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 256


def test_an_export_that_computes_something_else_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both checks see one number of one weight that was written wrong, and nothing is left."""
    write = export_files.save_file

    def spoilt(tensors: Any, path: Path, metadata: Any) -> None:
        name = next(name for name in tensors if name.endswith("up.weight"))
        tensors[name] = tensors[name].clone()
        tensors[name][0, 0] += 1
        write(tensors, path, metadata=metadata)

    monkeypatch.setattr(export_files, "save_file", spoilt)
    for check, said in (("logits", "computes other logits"), ("weights", "something else")):
        code, _, text = command("from=llama", f"to={tmp_path / 'made'}", f"check={check}")
        assert (code, said in text) == (1, True), text
        assert list(tmp_path.iterdir()) == []


def test_an_export_opens_as_a_run_does(command: Command, tmp_path: Path) -> None:
    """One of ours is a source too: what is exported from it has the same weights."""
    made, again = tmp_path / "made", tmp_path / "again"
    assert command("from=llama@3", f"to={made}")[0] == 0
    assert command(f"from={made}", f"to={again}")[0] == 0
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert json.loads((again / "metadata.json").read_text())["source"]["kind"] == "export"


def test_bf16_for_transformers(command: Command, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert command("from=llama", f"to={tmp_path}", "format=hf", "dtype=bf16")[0] == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(
        theirs.model.norm.weight, expected("llama", 7)["final_norm.weight"].bfloat16()
    )


REFUSED = {
    ("from=geglu", "format=hf"): ["no counterpart", "llama has not activation=geglu"],
    ("from=gpt2@5",): ["no checkpoint of step 5", "There are: 3, 7"],
    ("from=nothing",): ["there is no run 'nothing'"],
    ("from=gpt2", "max_shard_size=lots"): ["max_shard_size=lots", "5GB"],
    ("from=gpt2", "max_shard_size=0"): ["max_shard_size=0", "greater than 0"],
    ("from=gpt2", "dtype=fp8"): ["dtype=fp8", "'bf16'"],
    ("run=gpt2",): ["no option 'run'", "from=RUN"],
    ("from=gpt2", "step=3"): ["no option 'step'", "from=RUN@STEP"],
    ("from=gpt2", "names=hf"): ["no option 'names'", "format=hf"],
    ("from=gpt2", "format=onnx"): ["format=onnx", "'hf'"],
    (): ["from is not given"],
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_refused_with_what_would_work_and_nothing_is_left(
    command: Command, tmp_path: Path, words: tuple[str, ...]
) -> None:
    code, out, said = command(*words, f"to={tmp_path / 'made'}")
    assert (code, out) == (2, "")
    assert all(part in said for part in ("ConfigError: ", *REFUSED[words])), said
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(command: Command, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    for to in (tmp_path, tmp_path / "kept"):
        code, _, said = command("from=gpt2", f"to={to}")
        assert code == 2
        assert f"{to} exists already" in said
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_the_directory_is_complete_or_absent(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = export_files.save_file, []

    def full_disk(tensors: Any, path: Path, metadata: Any) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(tensors, path, metadata=metadata)

    monkeypatch.setattr(export_files, "save_file", full_disk)
    code, _, said = command("from=gpt2", f"to={tmp_path / 'made'}", "max_shard_size=30kB")
    assert code == 1
    assert f"cannot write {tmp_path / 'made'}" in said
    assert "No space left" in said
    assert written
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_passed_over_unless_it_is_asked_for(
    command: Command, tmp_path: Path
) -> None:
    run_dir, config = make_run(tmp_path, "gpt2")
    code, _, said = command(f"from={run_dir.path}", f"to={tmp_path / 'none'}")
    assert (code, "has no checkpoint yet (state: new)" in said) == (2, True)
    for step in (1, 2):
        save(run_dir, config, step)
    damaged = run_dir.checkpoints / "step-00000002" / "rank-00004.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, said = command(f"from={run_dir.path}", f"to={tmp_path / 'made'}")
    assert code == 0
    assert "passing over a checkpoint" in said
    assert "after step 1" in said
    code, _, said = command(f"from={run_dir.path}@2", f"to={tmp_path / 'other'}")
    assert code == 1
    assert "rank-00004.safetensors is damaged" in said
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("5GB", 5 * 10**9),
        ("1.5 mb", 1_500_000),
        ("30k", 30_000),
        ("7B", 7),
        ("1_000", 1000),
        (12, 12),
    ],
)
def test_sizes(text: str | int, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1", "1.5", "5GiB", "1e9x", "inf", True])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_bytes(text)


MEASURED = """
import sys, threading
import torch
from scaling.inference import export, trained
from scaling.export import main

def anonymous_bytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

small, large = sys.argv[1:]
assert main([f"from={small}", f"to={small}.made", "check=weights"]) == 0  # so that all is imported
before, peak, over = anonymous_bytes(), 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.001):
        peak = max(peak, anonymous_bytes())
watcher = threading.Thread(target=watch)
watcher.start()
code = main([f"from={large}", f"to={large}.made", "max_shard_size=6MB", "check=weights"])
over.set()
watcher.join()
print(code, peak - before, sorted({"ray", "deepspeed"} & set(sys.modules)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_it_holds_one_file_in_memory_and_loads_neither_ray_nor_deepspeed(tmp_path: Path) -> None:
    """A model of 47 MB in files of 6 MB. Seen: 26 MB more than before with check=weights, which
    holds a weight twice, and 62 MB with files of 44 MB."""
    run_dir, config = make_run(
        tmp_path,
        "larger",
        "model.n_layers=7",
        "model.d_model=384",
        "model.n_heads=6",
        "train.seq_len=32",
        *BYTES,
    )
    save(run_dir, config, 1)
    small, small_config = make_run(tmp_path, "gpt2")
    save(small, small_config, 1)
    words = [sys.executable, "-c", MEASURED, str(small.path), str(run_dir.path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    assert done.stdout, done.stderr
    code, more_bytes, loaded = done.stdout.splitlines()[-1].split(maxsplit=2)
    assert (code, loaded) == ("0", "[]"), done.stderr
    total = json.loads(Path(f"{run_dir.path}.made/model.safetensors.index.json").read_text())[
        "metadata"
    ]["total_size"]
    assert total > 45e6
    assert int(more_bytes) < 35e6
