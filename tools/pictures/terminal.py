"""Draw the output of a command on a terminal of 80 columns.

python tools/pictures/terminal.py docs/images/plan.svg python -m scaling.run dry_run=true
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 80


def picture(command: list[str]) -> str:
    """An SVG without external fonts, so that it looks the same offline."""
    environment = os.environ | {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    for line in done.stdout.splitlines():
        console.print(Text.from_ansi(line.rstrip()))
    svg = console.export_svg(title=shlex.join(command), theme=MONOKAI, unique_id="terminal")
    return re.sub(r"\n\s*@font-face \{.*?\n\s*\}", "", svg, flags=re.DOTALL)


def main(words: list[str]) -> int:
    if len(words) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    Path(words[0]).write_text(picture(words[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
