"""The commands by name. Each is a module `scaling.VERB`, imported only when it is used."""

from __future__ import annotations

VERBS = {
    "run": "train one configuration, or with -m a study of many; the same command again continues",
    "plan": "rank every legal layout of a model on a cluster",
    "prepare": "make shards of text, JSON lines, parquet and tars",
    "status": "list the runs of a directory, and how they stand",
    "generate": "continue a text with a trained model",
    "fill": "fill the gaps of a text with a trained BERT",
    "export": "write trained weights for another program, and prove that it computes the same",
    "fit": "fit scaling laws to a study or a table",
    "predict": "ask a fitted law for the best size, a loss or a budget",
    "rehearse": "kill a run at random and compare its curve with an unbroken one",
    "completion": "print the script that completes these commands in bash and zsh",
}
"""Verb -> what it does, in the order of the help."""
