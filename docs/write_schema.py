"""Writes docs/exchange.schema.json from the manifest's own types: ``make docs``."""

import json
from pathlib import Path

from lorax_vlm.adapters.manifest import manifest_schema

PATH = Path(__file__).parent / "exchange.schema.json"

if __name__ == "__main__":
    PATH.write_text(json.dumps(manifest_schema(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"Wrote {PATH}")
