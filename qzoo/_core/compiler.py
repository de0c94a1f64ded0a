"""The C++ compiler that PyTorch's Inductor calls."""

from __future__ import annotations

import os
import shlex
import shutil
import sys

from ..errors import MissingDependencyError

_USUAL = {"darwin": "clang++", "win32": "cl"}
#: What to do where there is none.
INSTALL_COMPILER = (
    "install one (apt-get install g++, or xcode-select --install) or name yours in the environment "
    "variable CXX"
)


def has_compiler() -> bool:
    """Whether there seems to be a C++ compiler, told by Inductor's rule without importing that.

    Inductor takes the command in CXX, else the platform's usual one.
    """
    command = shlex.split(os.environ.get("CXX") or _USUAL.get(sys.platform, "g++"))
    return bool(command) and shutil.which(command[0]) is not None


def check_compiler() -> None:
    """Checks that Inductor can compile for CPUs.

    Raises:
        MissingDependencyError: There is no C++ compiler.
    """
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        raise MissingDependencyError(
            f"Inductor needs a C++ compiler, and there is none here: {INSTALL_COMPILER}."
        ) from None
