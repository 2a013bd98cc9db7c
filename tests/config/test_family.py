"""Families of models: one registry says what each is, and nothing else compares their names."""

from __future__ import annotations

import re
from pathlib import Path

import scaling
from scaling.config.family import FAMILIES, traits_of
from scaling.model import FAMILIES as CLASSES
from scaling.model import GenerativeModel, MaskedModel

ROOT = Path(scaling.__file__).parent
# a name of a family beside a comparison, or the family of a configuration beside one
COMPARED = re.compile(
    rf"(==|!=|\bin \() *\"({'|'.join(FAMILIES)})\"|\.family *(==|!=|in\b|not in\b)"
    r"|isinstance\([^)]*\b(GPT|BERT|T5|Transformer)\b"
)
EXPORTS = ROOT / "model" / "export"


def test_no_module_compares_names_of_families() -> None:
    allowed = {ROOT / "config" / "family.py", *EXPORTS.rglob("*.py")}
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in ROOT.rglob("*.py")
        if path not in allowed
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if COMPARED.search(line)
    ]
    assert found == []


def test_the_pattern_finds_each_way_of_comparing() -> None:
    for line in (
        'causal = model.family == "gpt"',
        'if model.family in ("t5", "transformer"):',
        'head = model.like != "bert"',
        "if isinstance(run.model, BERT):",
    ):
        assert COMPARED.search(line), line
    assert not COMPARED.search('families=("gpt",)')


def test_traits_agree_with_the_classes() -> None:
    assert FAMILIES.keys() == CLASSES.keys()
    for name, cls in CLASSES.items():
        traits = traits_of(name)
        assert issubclass(cls, MaskedModel) == traits.masked_head
        assert issubclass(cls, GenerativeModel) == (not traits.masked_head)
        assert cls.n_stacks == (2 if traits.encoder_and_decoder else 1)


def test_the_files_that_a_new_family_touches_are_listed_alike() -> None:
    listed = re.findall(r"^- (\S+):", (ROOT / "config" / "family.py").read_text(), re.MULTILINE)
    checklist = (ROOT.parent / "CONTRIBUTING.md").read_text().split("### A model family")[1]
    rows = re.findall(r"^\| `([^`]+)`", checklist.split("###")[0], re.MULTILINE)
    assert rows == listed
    assert len(listed) == 5
