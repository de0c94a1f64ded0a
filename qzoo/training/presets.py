"""The recipes that torchvision published with its weights, as values of the options.

Source: https://github.com/pytorch/vision/blob/main/references/classification/README.md, and
https://github.com/pytorch/vision/issues/3995 for "torchvision-resnet50-v2". Batch sizes are those
of each of torchvision's 8 processes.
"""

from __future__ import annotations

from typing import Any

from ..errors import UnknownNameError, did_you_mean

#: How many processes torchvision trained with, each with the recipe's batch size.
PROCESSES = 8

#: What torchvision's train.py does where nothing else is said.
_PLAIN: dict[str, Any] = {
    "batch_size": 32,
    "epochs": 90,
    "opt": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "lr_scheduler": "step",
    "lr_step_size": 30,
    "lr_gamma": 0.1,
    "augment": "crop",
    "train_crop_size": 224,
    "val_resize_size": 256,
    "val_crop_size": 224,
}
_RESNEXT = {**_PLAIN, "epochs": 100}
_MOBILENET_V2 = {
    **_PLAIN,
    "epochs": 300,
    "lr": 0.045,
    "weight_decay": 4e-5,
    "lr_step_size": 1,
    "lr_gamma": 0.98,
}
# torchvision then averaged the last three checkpoints that improved the accuracy.
_MOBILENET_V3 = {
    **_PLAIN,
    "epochs": 600,
    "opt": "rmsprop",
    "batch_size": 128,
    "lr": 0.064,
    "weight_decay": 1e-5,
    "lr_step_size": 2,
    "lr_gamma": 0.973,
    "auto_augment": "imagenet",
    "random_erase": 0.2,
}
_NEW = {
    **_PLAIN,
    "batch_size": 128,
    "epochs": 600,
    "lr": 0.5,
    "lr_scheduler": "cosine",
    "lr_warmup_epochs": 5,
    "lr_warmup_method": "linear",
    "lr_warmup_decay": 0.01,
    "auto_augment": "ta_wide",
    "random_erase": 0.1,
    "weight_decay": 2e-5,
    "norm_weight_decay": 0.0,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "train_crop_size": 176,
    "val_resize_size": 232,
    "model_ema": True,
    "ra_reps": 4,
}
# Training with quantization; torchvision writes that it converges at about 10 epochs.
_QAT = {
    **_PLAIN,
    "lr": 1e-4,
    "backend": "qnnpack",
    "num_observer_update_epochs": 4,
    "num_batch_norm_update_epochs": 3,
}

#: Options by the name of the recipe. GoogLeNet, Inception V3 and the two smaller ShuffleNets have
#: none: torchvision took their weights over from elsewhere.
PRESETS: dict[str, dict[str, Any]] = {
    **{f"torchvision-resnet{n}": _PLAIN for n in (18, 34, 50, 101, 152)},
    "torchvision-resnext50_32x4d": _RESNEXT,
    "torchvision-resnext101_32x8d": _RESNEXT,
    "torchvision-mobilenet_v2": _MOBILENET_V2,
    "torchvision-mobilenet_v3_large": _MOBILENET_V3,
    "torchvision-mobilenet_v3_small": _MOBILENET_V3,
    "torchvision-shufflenet_v2_x1_5": _NEW,
    "torchvision-shufflenet_v2_x2_0": _NEW,
    "torchvision-resnet50-v2": _NEW,
    "torchvision-qat-mobilenet_v2": _QAT,
    "torchvision-qat-mobilenet_v3_large": {**_QAT, "lr": 1e-3, "weight_decay": 1e-5},
}


def preset(name: str) -> dict[str, Any]:
    """Returns the options of a recipe.

    Raises:
        UnknownNameError: There is no such recipe.
    """
    if name not in PRESETS:
        raise UnknownNameError(
            f"Unknown preset {name!r}: choose one of {', '.join(PRESETS)}."
            + did_you_mean(name, PRESETS)
        )
    return dict(PRESETS[name])
