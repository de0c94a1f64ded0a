"""Mixed precision: which layers lose most, and which to keep in float."""
