"""The builders for torch.hub: torch.hub.load(<repo>, "resnet50", source="local", quantize=True)."""

dependencies = ["torch", "torchvision", "numpy", "safetensors"]

import qzoo as _qzoo  # noqa: E402  (torch.hub looks at the dependencies first)

globals().update({name: _qzoo.get_model_builder(name) for name in _qzoo.list_models()})
