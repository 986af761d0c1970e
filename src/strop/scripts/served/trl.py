"""`import trl` in a process that a script starts anew (multiprocessing's spawn): it gets the path, and no finder."""

from __future__ import annotations

import importlib
import sys

from strop.scripts.alias import serve_trl

if __name__ == "trl":
    serve_trl()
    sys.modules[__name__] = importlib.import_module("trl")
