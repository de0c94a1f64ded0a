"""What every room that stands on PyTorch may use: its defaults and threads, set for a while.

Those rooms import this one first: where PyTorch is missing, that ends in the sentence which says
what install of qzoo has it.
"""

from .._core.optional import require_torch

require_torch("This part of qzoo")
