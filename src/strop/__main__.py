"""`python -m strop` is the command line."""

from __future__ import annotations

import sys

from strop.cli import main

sys.exit(main())
