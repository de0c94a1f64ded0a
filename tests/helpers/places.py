"""Where things lie that several tests read."""

from __future__ import annotations

from pathlib import Path

import qzoo

#: The checkout.
ROOT = Path(__file__).parents[2]
REFERENCES = ROOT / "references"
BENCHMARKS = ROOT / "benchmarks"
#: On PYTHONPATH, it hides PyTorch.
HIDDEN_TORCH = ROOT / "tests" / "helpers" / "hidden_torch"
#: The package as it is imported, and what it embeds.
PACKAGE = Path(qzoo.__file__).parent
EMBEDDED = PACKAGE / "embedded"
INT8 = EMBEDDED / "shufflenet_v2_x0_5_digits_x86.safetensors"
DIGITS = sorted((EMBEDDED / "digits").glob("*.png"))
