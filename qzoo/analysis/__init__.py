"""Diagnosis: where an int8 model loses accuracy, and what to do about it."""
