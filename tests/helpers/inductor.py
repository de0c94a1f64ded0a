"""What Inductor has compiled."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from pathlib import Path


def kernels(package: Path) -> Counter[str]:
    """Counts the library calls in a package's generated code."""
    with zipfile.ZipFile(package) as archive:
        code = "".join(
            archive.read(n).decode() for n in archive.namelist() if n.endswith("wrapper.cpp")
        )
    assert code
    return Counter(re.findall(r"aoti_torch_cpu_(\w*(?:conv|linear|addmm|mm_)\w*)\(", code))
