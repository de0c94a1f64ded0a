"""A zoo of quantized image-classification models for PyTorch."""
