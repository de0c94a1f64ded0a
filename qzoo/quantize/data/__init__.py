"""Images: which ones to calibrate on, and which to measure on."""

from .calibration import Calibration, nothing, open_calibration
from .images import stratified, targets_of
from .labelled import LabelledImages, open_labelled

__all__ = [
    "Calibration",
    "LabelledImages",
    "nothing",
    "open_calibration",
    "open_labelled",
    "stratified",
    "targets_of",
]
