"""What every part of the package may use: optional packages, timing."""
