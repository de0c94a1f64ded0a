"""The stored format: int8 models as plain integers, in and out."""
