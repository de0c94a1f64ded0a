"""The old place of `qzoo.native.model`, kept for programs that import it from here."""

from ..native.model import (
    attach_info,
    copy_model,
    from_native,
    has_wide_depthwise,
    load,
    model_info,
    package_versions,
    pickled_parts,
    save,
    to_native,
    unpickled,
)

__all__ = [
    "attach_info",
    "copy_model",
    "from_native",
    "has_wide_depthwise",
    "load",
    "model_info",
    "package_versions",
    "pickled_parts",
    "save",
    "to_native",
    "unpickled",
]
