"""Families of models, and all that the rest of the package asks about one.

A new family is written in five files:

- scaling/config/family.py: its name and its traits in FAMILIES, below
- scaling/model/FAMILY.py: its modules
- scaling/model/__init__.py: its class in FAMILIES
- conf/model/FAMILY_SIZE.yaml: a named shape
- docs/models.md: its description

A plugin declares one in its own package instead (`scaling.config.plugins.Family`). No other module
compares names of families. Only an export to another library's format may: a family without a
counterpart there is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from scaling.config.plugins import added


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a family is.

    description          completes the help of model.family
    refusal              completes "model.family=NAME, which ..." where an objective does not fit
    objectives           what it can learn, its own first
    causal               its first stack sees earlier tokens only
    encoder_and_decoder  it has two stacks, and the second looks at the first
    masked_head          its head is computed for hidden tokens alone, behind a dense layer; it has
                         embeddings of segments
    scaled_embedding     embeddings are multiplied by sqrt(d_model)
    unscaled_scores      scores of attention are not divided by sqrt(d_head)
    mup                  the rules of mup and completep cover it
    """

    description: str
    refusal: str
    objectives: tuple[str, ...]
    causal: bool = False
    encoder_and_decoder: bool = False
    masked_head: bool = False
    scaled_embedding: bool = False
    unscaled_scores: bool = False
    mup: bool = False


_BESIDE_AN_ENCODER = "has an encoder that needs an input of its own"

FAMILIES: dict[str, Traits] = {
    "gpt": Traits(
        description="causal decoder",
        refusal="sees earlier tokens only",
        objectives=("causal_lm",),
        causal=True,
        mup=True,
    ),
    "bert": Traits(
        description="bidirectional encoder",
        refusal="sees the tokens that it would have to predict",
        objectives=("masked_lm",),
        masked_head=True,
    ),
    "t5": Traits(
        description="encoder and decoder",
        refusal=_BESIDE_AN_ENCODER,
        objectives=("span_corruption", "prefix_lm", "seq2seq"),
        encoder_and_decoder=True,
        unscaled_scores=True,
    ),
    "transformer": Traits(
        description="encoder and decoder",
        refusal=_BESIDE_AN_ENCODER,
        objectives=("seq2seq", "span_corruption", "prefix_lm"),
        encoder_and_decoder=True,
        scaled_embedding=True,
    ),
}


@cache
def traits_of(family: str) -> Traits:
    """The traits of a family of this package, or of a plugin's, which has those of the family that
    it is like. `objectives` has what plugins let it learn, too."""
    if family in FAMILIES:
        traits = FAMILIES[family]
    else:
        plugin = added("families")[family]
        traits = replace(
            FAMILIES[plugin.like], refusal=plugin.description, objectives=plugin.objectives
        )
    more = [name for name, objective in added("objectives").items() if family in objective.families]
    return replace(traits, objectives=(*traits.objectives, *more))


def described() -> str:
    """What each family of this package is, for the help of model.family."""
    return "; ".join(f"{name}: {traits.description}" for name, traits in FAMILIES.items())
