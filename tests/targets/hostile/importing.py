"""A module that disturbs its import: it exits, hangs, or leaves a thread, which a fork for trials does not copy."""

import os
import sys
import threading
import time
from pathlib import Path

from right import lora_linear

__all__ = ["lora_linear"]
HOW = os.environ.get("HOSTILE_IMPORT", "")
MARK = Path(os.environ.get("HOSTILE_MARK", os.devnull))
AGAIN = MARK.is_file()

if HOW == "exits":
    sys.exit(0)
if HOW == "hangs":
    time.sleep(3600)
if HOW == "ends again" and AGAIN:
    os._exit(0)
if HOW in ("leaves a thread", "ends again"):
    threading.Thread(target=time.sleep, args=(3600,)).start()
if HOW == "ends again":
    MARK.touch()
