"""The same rows by other systems, each a program: ``python -m jobs.bench.peers.raw SPEC``.

``SPEC`` is a JSON file: ``prompts`` (a folder of Parquet files with a ``prompt``), ``output``,
``model``, ``engine`` (vLLM's arguments), ``sampling`` (vLLM's ``SamplingParams``), ``seeded``,
``device``.
"""

import json
import sys
from pathlib import Path
from typing import Any


def spec() -> dict[str, Any]:
    """The content of the file ``SPEC``."""
    data: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return data
