"""`python -m scaling.prepare`: text in files of many kinds -> a directory of shards for
`data=shards data.path=DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.commands import entry

USAGE = """\
Usage: python -m scaling.prepare inputs='GLOB,FOLDER,...' out=DIR [KEY=VALUE ...]

Writes the documents of the inputs as tokenised shards: exact duplicates once, some held out, in an
order that only their text fixes. Killed, the same command continues where it ended. Afterwards:
python -m scaling.run data=shards data.path=DIR

  python -m scaling.prepare inputs='books/**/*.txt' out=shards/books tokenizer=bpe vocab_size=8192
  python -m scaling.prepare inputs='c4/*,wiki/*.parquet' out=mix tokenizer=hf:openai-community/gpt2
  python -m scaling.prepare inputs=~/src/project out=shards/project tokenizer=byte processes=4
  python -m scaling.prepare inputs=hf:HuggingFaceFW/fineweb-edu:sample-10BT max_files=2 out=web

"""


def main(argv: Sequence[str] | None = None) -> int:
    return entry.enter(_command, argv, after_stop="the same command continues")


def _command(words: list[str]) -> int:
    """The imports are here, behind the door: they take a second."""
    from scaling.commands.fitted_help import print_help
    from scaling.composition.flags import answered
    from scaling.composition.words import option_lines, read_options
    from scaling.data.prepare.options import PrepareOptions

    if answered(words, lambda: print_help(USAGE + "\n".join(option_lines(PrepareOptions)))):
        return 0
    options = read_options(PrepareOptions, words)
    from scaling.commands.progress import ProgressBar
    from scaling.data.prepare.command import prepare, summary
    from scaling.terminal import print_items

    with ProgressBar() as bar:
        index, seconds = prepare(options, bar.report)
    print_items(summary(options.out, index, seconds))
    return 0


if __name__ == "__main__":
    entry.leave(main())
