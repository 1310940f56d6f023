#!/usr/bin/env python3
"""The command `fadepth`, from a clone: `python training/run.py fit --config ...` is `fadepth fit --config ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # whether installed or not

from fadepth_core.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
