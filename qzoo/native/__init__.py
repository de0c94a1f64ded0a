"""Native int8 models: the only package that touches `torch.ao`, which PyTorch is to delete."""
