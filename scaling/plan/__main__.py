"""`python -m scaling.plan`."""

from __future__ import annotations

import sys

from scaling.planning import main

if __name__ == "__main__":
    sys.exit(main())
