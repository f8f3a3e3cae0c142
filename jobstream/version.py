"""Which version of jobstream this is."""

from __future__ import annotations

import importlib.metadata

VERSION = importlib.metadata.version("jobstream")
