"""scaling.generate and scaling.fill on tiny trained runs of every family: what they write, and what
they refuse."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scaling import fill, generate
from scaling.commands.entry import EXIT_PIPE
from scaling.inference.options import GenerateOptions
from scaling.inference.prompts import question
from scaling.inference.text import texts
from scaling.inference.trained import Trained, open_trained
from scaling.launch.run import drive
from scaling.model import GenerativeModel
from scaling.runs.by_name import find_run
from scaling.runs.directory import RunDir
from scaling.weights.source import find_source
from tests.support.configs import composed
from tests.support.objectives import BYTES, CLS, FAMILY, MASK, SENTINELS, SEP

N_SAMPLED = 12
SHAPE = (
    "model.n_layers=1",
    "model.d_model=32",
    "model.n_heads=2",
    "model.dropout=0",
    "train.seq_len=48",
    "train.n_tokens=4000",
    "train.global_batch_size=4",
    "layout=manual",
    "layout.dp=1",
    "layout.engine=reference",
    f"train.sample_tokens={N_SAMPLED}",
    "checkpoint.every_steps=5",
    "schedule.warmup_tokens=400",
    "optim.lr=1e-2",
)
PROMPTS = {
    "causal_lm": "Der Käf",
    "prefix_lm": "Der Käf",
    "span_corruption": "Der <mask> läuft <mask>.",
    "seq2seq": "ein Käfer",
}

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs named by their objectives, trained for a few steps on text with characters of two to
    four bytes."""
    root = tmp_path_factory.mktemp("generate")
    (root / "text").mkdir()
    for number in range(12):
        (root / "text" / f"{number}.txt").write_text(
            f"Der Käfer {number} läuft über die Straße zum 🦊. " * 15
        )
    (root / "pairs.tsv").write_text(
        "".join(f"ein Käfer {n}\ta beetle {n} → 🦊\n" for n in range(300))
    )
    for kind, model in FAMILY.items():
        data = (
            ("data=text_pairs", f"data.path={root / 'pairs.tsv'}")
            if kind == "seq2seq"
            else ("data=text_files", f"data.path='{root}/text/*.txt'")
        )
        prompt = f"train.sample_prompt='{PROMPTS.get(kind, 'Der K<mask>fer')}'"
        where = (
            f"run.root={root / 'runs'}",
            f"run.name={kind}",
            f"data.cache_dir={root / 'cache'}",
        )
        assert (
            drive(
                composed(
                    f"model={model}", f"objective={kind}", *data, *where, *BYTES, *SHAPE, prompt
                )
            )
            == 0
        )
    shutil.rmtree(root / "cache")  # a trained run needs its corpus no more
    return root / "runs"


@pytest.fixture
def command(root: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run scaling.generate, or with fill=True scaling.fill: (exit code, output, what was said
    beside it)."""

    def call(*words: str, fills: bool = False) -> tuple[int, str, str]:
        capsys.readouterr()
        code = (fill if fills else generate).main([f"run.root={root}", *words])
        return code, *capsys.readouterr()

    return call


def opened(root: Path, run: str) -> Trained:
    return open_trained(find_source(run, str(root), print), torch.device("cpu"))


def written(command: Command, *words: str) -> str:
    code, out, said = command(*words)
    assert code == 0, said
    return out


@torch.no_grad()
def greedy(trained: Trained, prompt: str, n_tokens: int) -> list[int]:
    """Generate by full forwards, without a cache."""
    model, asked = trained.model, question(trained.config, trained.tokenizer, prompt)
    assert isinstance(model, GenerativeModel)
    source = None if asked.source_ids is None else model.encode(torch.tensor([asked.source_ids]))
    tokens = list(asked.prompt_ids)
    while len(tokens) < len(asked.prompt_ids) + n_tokens:
        token = int(model(torch.tensor([tokens]), source=source)[0, -1].argmax())
        if token == trained.tokenizer.eot_id:
            break
        tokens.append(token)
    return tokens[len(asked.prompt_ids) :]


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_weights_are_those_of_the_end_of_training(
    root: Path, command: Command, kind: str
) -> None:
    """The run drew a sample from its own model when it ended; the command draws the same one from
    the checkpoint."""
    summary = RunDir(find_run(kind, str(root), print)).read_summary()
    assert summary is not None
    words = ("method=sample", "temperature=0.8", "seed=0", f"max_new_tokens={N_SAMPLED}")
    assert (
        written(command, f"from={kind}", f"prompt={PROMPTS[kind]}", *words)
        == summary["sample"] + "\n"
    )


@pytest.mark.parametrize("kind", ["causal_lm", "prefix_lm", "seq2seq"])
def test_greedy_is_the_argmax_of_full_forwards(root: Path, command: Command, kind: str) -> None:
    trained = opened(root, kind)
    expected = trained.tokenizer.decode(greedy(trained, PROMPTS[kind], 24))
    assert (
        written(
            command, f"from={kind}", f"prompt={PROMPTS[kind]}", "method=greedy", "max_new_tokens=24"
        )
        == expected + "\n"
    )
    assert expected, "not nothing against nothing"


@pytest.mark.parametrize("kind", PROMPTS)
def test_one_beam_without_penalty_writes_what_greedy_does(command: Command, kind: str) -> None:
    words = (f"from={kind}", f"prompt={PROMPTS[kind]}", "max_new_tokens=10")
    assert written(command, *words, "n_beams=1", "length_penalty=0") == written(
        command, *words, "method=greedy"
    )


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_seed_repeats_and_samples_have_seeds_of_their_own(command: Command, kind: str) -> None:
    words = (f"from={kind}", f"prompt={PROMPTS[kind]}", "temperature=1.5", "max_new_tokens=9")
    first, again, other = (written(command, *words, f"seed={seed}") for seed in (3, 3, 4))
    assert first == again
    assert (
        written(command, *words, "seed=3", "n_samples=2")
        == f"--- 1 of 2\n{first}--- 2 of 2\n{other}"
    )
    assert len({written(command, *words, f"seed={seed}") for seed in range(6)}) > 1


def test_the_pieces_are_the_text_of_the_tokens(root: Path) -> None:
    trained = opened(root, "causal_lm")
    asked = {"from": "causal_lm", "prompt": "Der", "method": "greedy", "max_new_tokens": 90}
    options = GenerateOptions.model_validate(asked)
    pieces = next(list(parts) for parts in texts(trained, options))
    assert len(pieces) > 40
    # Beyond the context the latest half of it is read again, so only the first tokens are those of
    # the full forward.
    assert "".join(pieces).startswith(trained.tokenizer.decode(greedy(trained, "Der", 40)))


def test_spans_are_shown_in_the_text_or_a_line_each(root: Path, command: Command) -> None:
    words = ("from=span_corruption", "method=greedy", f"prompt={PROMPTS['span_corruption']}")
    answer = greedy(opened(root, "span_corruption"), PROMPTS["span_corruption"], 40)
    text, spans = written(command, *words), written(command, *words, "show=spans")
    assert text.startswith("Der ")
    assert "läuft" in text
    assert "<mask>" not in text
    assert spans.startswith("1: ") == (SENTINELS[0] in answer)


def test_beams_are_different_texts_best_first(command: Command) -> None:
    out = written(
        command, "from=seq2seq", "prompt=ein Käfer", "n_beams=5", "n_samples=3", "max_new_tokens=8"
    )
    found = [part.partition("\n")[2] for part in out.split("--- ")[1:]]
    assert len(set(found)) == 3
    assert found[0] == written(
        command, "from=seq2seq", "prompt=ein Käfer", "n_beams=5", "max_new_tokens=8"
    )


def test_fill_shows_the_likeliest_tokens_of_each_gap(root: Path, command: Command) -> None:
    code, out, _ = command("from=masked_lm", "prompt=Der K<mask>fer l<mask>", "top_k=3", fills=True)
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("gap")] == ["gap 1", "gap 2"]
    trained = opened(root, "masked_lm")
    tokens = [CLS, *b"Der K", MASK, *b"fer l", MASK, SEP]
    probabilities = trained.model(torch.tensor([tokens]))[0].softmax(dim=-1)
    for block, place in ((lines[1:4], tokens.index(MASK)), (lines[5:8], len(tokens) - 2)):
        shares = [float(line.split("%")[0]) / 100 for line in block]
        # two digits of a per cent
        assert shares == pytest.approx(probabilities[place].topk(3).values.tolist(), abs=5.1e-5)


def test_the_prompt_from_standard_input(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("from=causal_lm", "method=greedy", "max_new_tokens=12")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Der Käf\n".encode())))
    assert written(command, *words, "prompt=-") == written(command, *words, "prompt=Der Käf")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"K\xe4fer")))
    code, _, said = command(*words, "prompt=-")
    assert code == 2
    assert "not UTF-8" in said


def test_a_run_by_path_by_name_and_without_its_id(root: Path, command: Command) -> None:
    (path,) = root.glob("causal_lm-*")
    words = ("prompt=Der", "method=greedy", "max_new_tokens=5")
    assert (
        len({written(command, f"from={run}", *words) for run in (path, path.name, "causal_lm")})
        == 1
    )


REFUSED = {
    ("from=nothing", "prompt=a"): ["there is no run 'nothing'", "causal_lm-", "seq2seq-"],
    ("from=", "prompt=a"): ["the name of the run is empty"],
    ("prompt=a",): ["from is not given"],
    ("from=causal_lm",): ["prompt is not given"],
    ("from=masked_lm", "prompt=a"): ["family bert", "scaling.fill"],
    ("from=causal_lm", "prompt=a", "top_q=1"): ["'top_q'", "Did you mean top_"],
    ("from=causal_lm", "prompt=a", "--greedy"): ["there is no flag --greedy"],
    ("from=causal_lm", "prompt=a", "seed=1", "seed=2"): ["seed is given twice"],
    ("from=causal_lm", "prompt=a", "temperature=-1"): [
        "temperature=-1",
        "greater than or equal to 0",
    ],
    ("from=causal_lm", "prompt=a", "temperature=nan"): ["temperature=nan", "finite"],
    ("from=causal_lm", "prompt=a", "top_p=0"): ["top_p=0", "greater than 0"],
    ("from=causal_lm", "prompt=a", "top_k=many"): ["top_k=many", "integer"],
    ("from=causal_lm", "prompt=a", "n_samples=0"): ["n_samples=0"],
    ("from=causal_lm", "prompt=a", "max_new_tokens=0"): ["max_new_tokens=0"],
    ("from=causal_lm", "prompt=a", "seed=-1"): ["seed=-1"],
    ("from=causal_lm", "prompt=a", "method=best"): ["method=best", "'greedy'"],
    ("from=causal_lm", "prompt=a", "method=greedy", "top_k=3"): [
        "method=greedy does not read top_k",
        "method=sample",
    ],
    ("from=causal_lm", "prompt=a", "n_beams=3", "top_k=3"): [
        "top_k is for method=sample and n_beams for method=beam"
    ],
    ("from=causal_lm", "prompt=a", "n_beams=3", "n_samples=4"): ["n_samples=4", "n_beams=3"],
    ("from=causal_lm", "prompt=a", "n_beams=3", "max_new_tokens=49"): [
        "max_new_tokens=49",
        "room for 48",
        "method=sample",
    ],
    ("from=causal_lm", "prompt=a", "show=spans"): ["show=spans", "objective=causal_lm"],
    ("from=causal_lm", "prompt=a", "device=tpu9"): ["device=tpu9", "device=cpu"],
    ("from=causal_lm", "prompt=a", "device=cuda"): ["device=cuda is not on this machine"],
    ("from=causal_lm", "prompt=" + "a" * 49): ["49 tokens", "at most 48", "train.seq_len=48"],
    ("from=causal_lm", "prompt=\udcff"): ["prompt is not UTF-8"],
    ("from=span_corruption", "prompt="): ["prompt is empty", "<mask>"],
    ("from=span_corruption", "prompt=" + "<mask>" * 61): ["61 gaps", "n_sentinels=60"],
    ("from=span_corruption", "prompt=" + "a" * 80): ["82 tokens", "train.seq_len=48"],
    ("from=seq2seq", "prompt= "): ["prompt is empty", "nothing to translate"],
    ("from=seq2seq", "prompt=a", "max_new_tokens=37"): [
        "max_new_tokens=37",
        "room for 36",
        "Use 36 or less",
    ],
    ("from=prefix_lm", "prompt=a", "max_new_tokens=49"): ["room for 48"],
}


@pytest.mark.parametrize(
    "words", REFUSED, ids=lambda words: " ".join(words)[:60].encode("ascii", "replace").decode()
)
def test_refused_with_what_would_work(command: Command, words: tuple[str, ...]) -> None:
    code, out, said = command(*words)
    assert (code, out) == (2, "")
    assert "ConfigError: " in said
    for part in REFUSED[words]:
        assert part in said


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("from=causal_lm", "prompt=a <mask>"), ["family gpt", "scaling.generate"]),
        (("from=masked_lm", "prompt=a"), ["no gap <mask>"]),
        (("from=masked_lm", "prompt="), ["no gap <mask>"]),
        (("from=masked_lm", "prompt=<mask>", "top_k=0"), ["top_k=0"]),
        (("from=masked_lm", "prompt=<mask>", "top_k=400"), ["top_k=400", "321 entries"]),
        (("from=masked_lm", "prompt=" + "a" * 46 + "<mask>"), ["49 tokens", "at most 48"]),
    ],
)
def test_fill_refuses_with_what_would_work(
    command: Command, words: tuple[str, ...], parts: list[str]
) -> None:
    code, out, said = command(*words, fills=True)
    assert (code, out) == (2, "")
    assert all(part in said for part in parts), said


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> RunDir:
    """A copy of a run, to be damaged."""
    (path,) = root.glob("causal_lm-*")
    return RunDir(shutil.copytree(path, tmp_path / path.name))


def test_the_newest_sound_checkpoint_is_used_and_none_is_an_error(
    copied: RunDir, command: Command
) -> None:
    words = (f"from={copied.path}", "prompt=Der", "method=greedy", "max_new_tokens=5")
    newest, before = sorted(copied.checkpoints.glob("step-*"), reverse=True)
    weights = newest / "rank-00000.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, said = command(*words)
    assert code == 0
    assert "passing over a checkpoint" in said
    assert f"after step {int(before.name.removeprefix('step-'))}" in said
    shutil.rmtree(before)
    code, _, said = command(*words)
    assert code == 1
    assert "CheckpointError" in said
    shutil.rmtree(newest)
    code, _, said = command(*words)
    assert code == 2
    assert "has no checkpoint yet (state: finished)" in said


def test_a_missing_damaged_or_other_tokenizer_is_named(
    copied: RunDir, root: Path, command: Command
) -> None:
    words = (f"from={copied.path}", "prompt=Der")
    copied.tokenizer.write_text("{}")
    assert "is not a tokenizer" in command(*words)[2]
    copied.tokenizer.unlink()
    code, _, said = command(*words)
    assert code == 1
    assert f"{copied.tokenizer} is missing" in said
    assert "data.cache_dir" in said


def test_a_directory_that_is_no_run_is_refused(
    copied: RunDir, tmp_path: Path, command: Command
) -> None:
    code, _, said = command(f"from={tmp_path}", "prompt=a")
    assert code == 2
    assert "is a directory without config.yaml" in said


def test_help_names_every_option(command: Command) -> None:
    for fills in (False, True):
        code, out, _ = command("--help", fills=fills)
        assert code == 0
        assert "Usage: python -m scaling." in out
        assert all(
            f"\n  {key}=" in out for key in ("from", "prompt", "run.root", "device", "top_k")
        )


def test_a_reader_that_has_enough_ends_it_quietly(root: Path) -> None:
    words = (
        f"run.root={root}",
        "from=causal_lm",
        "prompt=Der",
        "n_samples=1000",
        "max_new_tokens=40",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "scaling.generate", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"--- 1 of 1000\n"
    process.stdout.close()
    assert process.wait(timeout=60) == EXIT_PIPE
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
