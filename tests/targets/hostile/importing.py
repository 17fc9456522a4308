"""Modules that hinder their import: always, or only where trials run."""

import os
import sys
import threading
import time

from right import lora_linear

__all__ = ["lora_linear"]
HOW = os.environ.get("HOSTILE_IMPORT", "")
AGAIN = "_pytest" in sys.modules  # the smoke check does not import pytest

if HOW == "exits":
    sys.exit(0)
if HOW == "hangs":
    time.sleep(3600)
if HOW == "ends again" and AGAIN:
    os._exit(0)
if HOW == "exits again" and AGAIN:
    sys.exit(0)
if HOW == "leaves a thread":
    threading.Thread(target=time.sleep, args=(3600,)).start()
