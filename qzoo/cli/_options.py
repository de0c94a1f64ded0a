"""The options that commands share: one name, one help text and one completion for each.

Each is called to declare a field of a command's options (`_command`), and takes keywords to say
otherwise. Nothing here imports PyTorch, so that help and completion answer at once; the names of
the library's tables are therefore written out, and tests/cli/test_options.py compares them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from .._core.option_types import MOST_SEED, MOST_SIZE, MOST_THREADS, Whole
from ..metadata import architectures, read_metadata
from ._command import Completer, Function, declared, option, place

BACKENDS = ("fbgemm", "x86", "onednn", "qnnpack")
RECIPES = ("fast", "default", "best", "torchvision")
FLOWS = ("eager", "fx", "pt2e")
RUNTIMES = ("libqzoo", "torch", "onnxruntime", "openvino", "inductor", "executorch")
NAMED_DATA = ("digits", "fractals")


def _matching(words: Sequence[str], incomplete: str) -> list[CompletionItem]:
    low = incomplete.lower()
    return [CompletionItem(word) for word in words if word.lower().startswith(low)]


def complete_models(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the zoo's models or, where none begins like that, files."""
    found = [] if os.sep in incomplete else _matching(architectures(), incomplete)
    return found or [CompletionItem(incomplete, type="file")]


def complete_data(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the named data sets or, where none begins like that, folders."""
    found = _matching(NAMED_DATA, incomplete)
    return found or [CompletionItem(incomplete, type="dir")]


def complete_weights(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes the weights of the model that was named before."""
    values = context.params
    # Words before an option that still lacks its value are not sorted into parameters yet.
    words = values.get("words") or values.get("models") or context.args
    model = values.get("model") or next(iter(words), "")
    if str(model).lower() not in architectures():
        return []
    if values.get("as_float") or context.command.name in ("quantize", "tune", "finetune"):
        return _matching(_float_members(str(model)), incomplete)
    return _matching(["DEFAULT", *read_metadata(str(model).lower())["weights"]], incomplete)


def _float_members(model: str) -> list[str]:
    """Returns the names of a model's float weights, which torchvision itself says."""
    from ..registry import get_entry

    try:
        return list(get_entry(model).float_weights.__members__)
    except ImportError:
        return []


def complete_from(names: Sequence[str]) -> Completer:
    """Returns a completer of fixed words, of which several may stand between commas."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        done, comma, last = incomplete.rpartition(",")
        return [CompletionItem(done + comma + item.value) for item in _matching(names, last)]

    return complete


def choice(names: Sequence[str]) -> click.Choice:
    """Returns the type of an option with a few fixed values, in any case."""
    return click.Choice(list(names), case_sensitive=False)


model = partial(
    place,
    "MODEL",
    "--model",
    "-m",
    help="The model, if it does not stand first.",
    complete=complete_models,
)
models = partial(model, help="A model, if it does not stand first; may be repeated.", many=True)
data = partial(
    place,
    "DATA",
    "--data",
    help="digits, fractals, or a folder: with train/ and val/, or with a folder per class.",
    complete=complete_data,
    missing="option '--data' (or DATA in its place)",
)
#: Of a command whose words are something else.
model_option = partial(option, "--model", "-m", shell_complete=complete_models)
weights = partial(
    option,
    "--weights",
    "-w",
    help="Which int8 weights of MODEL, where that is a name (see: qzoo info MODEL).  "
    "[default: DEFAULT]",
    shell_complete=complete_weights,
)
float_weights = partial(
    weights,
    help="Which of torchvision's float weights of MODEL, where that is a name.  [default: DEFAULT]",
)
#: Of what quantizes.
backend = partial(
    option,
    "--backend",
    type=choice(BACKENDS),
    help="Numbers to quantize for: qnnpack for phones, x86 or fbgemm for CPUs without VNNI.  "
    "[default: onednn or, without VNNI, x86]",
)
#: Of what runs int8 models on PyTorch.
engine = partial(
    option,
    "--backend",
    help="Engine of PyTorch that runs the model: fbgemm, x86, onednn or qnnpack.  "
    "[default: the model's own]",
    shell_complete=complete_from(BACKENDS),
)
runtime = partial(option, "--runtime", "--runtimes", type=choice(["auto", *RUNTIMES]))
recipe = partial(
    option,
    "--recipe",
    type=choice(RECIPES),
    default="default",
    help="How much work goes into accuracy; torchvision repeats what its script does.",
)
images = partial(
    option, "--images", type=Whole(1), help="Pictures to calibrate on.  [default: the recipe's]"
)
seed = partial(
    option,
    "--seed",
    type=Whole(0, MOST_SEED),
    default=0,
    help="Which pictures are picked; the same seed picks the same.",
)
keep_float = partial(
    option,
    "--keep-float",
    multiple=True,
    metavar="PATTERN",
    help="Layers whose weights stay float, such as fc or 'layer4.*'; may be repeated.",
)
threads = partial(
    option,
    "--threads",
    type=Whole(1, MOST_THREADS),
    help="CPU threads to compute with.  [default: all cores]",
)
size = partial(
    option,
    "--size",
    type=Whole(1, MOST_SIZE),
    help="Height and width of the pictures in pixels.  [default: the model's own]",
)
batch_size = partial(
    option,
    "--batch-size",
    "--batch",
    "-b",
    type=Whole(1),
    help="Pictures that go through the model at once.",
)
part = partial(
    option,
    "--part",
    metavar="KEY",
    help="Key of the state dict in a training checkpoint, such as model_ema or ema.module.  "
    "[default: model, state_dict and the like]",
)
transform_input = partial(
    option,
    "--transform-input/--no-transform-input",
    default=None,
    help="Whether the GoogLeNet or Inception of a state dict changes its input's normalization; "
    "those that descend from torchvision's pretrained weights do.",
)
all_pictures = partial(
    option,
    "--all-pictures",
    is_flag=True,
    help="Measure also on pictures that the model was trained or calibrated on.",
)
out = partial(
    option,
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="File to write, ending in .safetensors.",
)
html = partial(
    option,
    "--html",
    type=click.Path(path_type=Path),
    help="Also write a report, one HTML page, here.",
)
as_json = partial(option, "--json", is_flag=True, help="Print JSON on stdout, for programs.")


def state_dict(*spellings: str) -> Any:
    """Declares what may have to be said of a state dict; the field's value is a dict of it.

    Args:
        *spellings: Of `--arch`, in a command whose model has no option `--model`.
    """
    help = "Architecture of a state dict, a file of weights alone"
    if not spellings:
        help += "; --model beside a file says the same"
    architecture = option(
        "--arch",
        *spellings,
        metavar="NAME",
        help=f"{help}.  [default: told from names and shapes of the weights]",
        shell_complete=complete_models,
    )

    def declare(name: str, function: Function) -> Function:
        @functools.wraps(function)
        def run(
            architecture: str | None, part: str | None, transform_input: bool | None, **values: Any
        ) -> Any:
            told = {"model": architecture, "part": part, "transform_input": transform_input}
            values[name] = {key: value for key, value in told.items() if value is not None}
            return function(**values)

        decorated: Function = run
        fields = {
            "transform_input": transform_input(),
            "part": part(),
            "architecture": architecture,
        }
        for parameter, field in fields.items():
            decorated = field.metadata["declaration"](parameter, decorated)
        return decorated

    return declared(declare)


def of_quantizing(options: Any) -> dict[str, Any]:
    """Returns what a command's options say of PTQ, as keywords of `ptq` and `tune`."""
    names = ("backend", "recipe", "images", "seed", "keep_float", "batch_size")
    return {name: getattr(options, name) for name in names}
