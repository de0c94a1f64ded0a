"""What the figures mean, in plain words, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..backends import get_backend
from .compare import LayerComparison
from .experiments import Experiment
from .measures import Figures
from .suspects import Suspect, not_its_weights
from .words import db, percent, span

if TYPE_CHECKING:
    from .diagnose import Diagnosis

#: Decibels by which a change must improve the logits to be advised.
WORTHWHILE_DB = 2.0
#: Decibels below which a change that was tried makes no difference.
NOTICEABLE_DB = 0.5
#: Share of the values cut off that is reported: ranges of the least squared error cut off up to a
#: thousandth.
MUCH_CLIPPED = 0.01
#: Layers that are advised to be kept in float at most.
MANY = 8
#: Layers that one finding names at most.
NAMED = 5


@dataclass(frozen=True)
class Advice(Figures):
    """Something to try.

    Attributes:
        text: What, in words.
        python: The arguments of `qzoo.quantize.ptq` or a call; empty where there is none.
        command: The same on the command line; empty where there is none.
        gain_db: By how much it improved the logits when it was tried out on the simulation;
            None where it was not.
        agreement: Share of the first answers that were then the float model's, in percent.
    """

    text: str
    python: str = ""
    command: str = ""
    gain_db: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Finding(Figures):
    """One thing that the figures say.

    Attributes:
        kind: A word for programs: "fine", "wrong range", "wrong weights", "other weights",
            "per-tensor weights", "reduced range", "clipping", "dead channels", "kernels",
            "sensitive layers", "outputs", "few images".
        severity: "fault" (something is wrong), "loss" (a known cost with a remedy) or "note".
        title: One sentence.
        text: More of it.
        layers: The layers that it is about.
        advice: What to try, the best first.
    """

    kind: str
    severity: str
    title: str
    text: str
    layers: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()


def find(diagnosis: Diagnosis) -> tuple[Finding, ...]:
    """Returns what the figures say, faults first."""
    found = [
        *_kernels(diagnosis),
        *_other_weights(diagnosis),
        *_wrong_ranges(diagnosis),
        *_wrong_weights(diagnosis),
        *_per_tensor(diagnosis),
        *_reduced(diagnosis),
        *_sensitive(diagnosis),
        *_outputs(diagnosis),
        *_clipping(diagnosis),
        *_dead(diagnosis),
        *_few_images(diagnosis),
    ]
    order = ("fault", "loss", "note")
    found.sort(key=lambda f: order.index(f.severity))
    if not any(f.severity in ("fault", "loss") for f in found):
        found.insert(0, _fine(diagnosis))
    return tuple(found)


def matters(diagnosis: Diagnosis) -> bool:
    """Whether int8 changes answers by more than chance would, or by more than half a percent."""
    accuracy = diagnosis.accuracy
    if accuracy.drop is not None and accuracy.drop_interval is not None:
        return accuracy.drop > 0.3 or accuracy.drop_interval[0] > 0
    return accuracy.agreement < 99.5


def _fine(d: Diagnosis) -> Finding:
    return Finding(
        "fine",
        "note",
        "Nothing is wrong with this int8 model.",
        "No layer has numbers that do not fit its values, and no single layer stands out. What "
        "difference is left is what rounding to 8 bits costs.",
    )


def _kernels(d: Diagnosis) -> Iterator[Finding]:
    real, exact = d.comparison.native, d.comparison.simulated
    if real.noise > 2 * exact.noise and real.sqnr_db < 30:
        yield Finding(
            "kernels",
            "fault",
            "This machine's int8 kernels do not compute what the model's numbers say.",
            f"Run by PyTorch's kernels the logits have a signal-to-noise ratio of "
            f"{db(real.sqnr_db)}; exact arithmetic on the same integers gives "
            f"{db(exact.sqnr_db)}. So it is where a CPU's 16-bit sums overflow and are cut off.",
            advice=(
                Advice("Run the model on another engine.", 'qzoo.load(file, backend="onednn")'),
                Advice("Or quantize with 7-bit activations.", 'backend="x86"', "--backend x86"),
            ),
        )


def _other_weights(d: Diagnosis) -> Iterator[Finding]:
    if not_its_weights(d.comparison):
        yield Finding(
            "other weights",
            "fault",
            "The int8 weights are not those of this float model, rounded.",
            "Most layers differ by far more than rounding can explain. The int8 model was made of "
            "another checkpoint, or trained after it was quantized.",
            advice=(Advice("Give the float model that the int8 one was made of."),),
        )


def _wrong_ranges(d: Diagnosis) -> Iterator[Finding]:
    wrong = [s for s in d.ranking if s.wrong_range]
    if not wrong:
        return
    parts = [_range_story(d.comparison.layer(s.name)) for s in wrong[:NAMED]]
    images, observer = d.recipe.get("calibration_images"), d.recipe.get("observer")
    advice, tried = [], _experiment(d, "other ranges")
    if observer != "mse":
        advice.append(
            _measured(
                d, tried, "Choose ranges by the least squared error.",
                'recipe="default"', "--recipe default",
            )
        )  # fmt: skip
    advice.append(
        _measured(
            d, tried if observer == "mse" else None,
            "Calibrate anew, on images like those that the model will see"
            + (f", and more than {images} of them." if images and images < 512 else "."),
            "images=1024", "--images 1024",
        )
    )  # fmt: skip
    harmless = tried is not None and _gain(d, tried) < NOTICEABLE_DB
    text = " ".join(parts) + _more(wrong)
    if harmless:
        text += " Other ranges were tried out, and the logits gain nothing by them."
    yield Finding(
        "wrong range",
        "note" if harmless else "fault",
        f"{_these(wrong)} outputs are rounded to a range that does not fit.",
        text,
        tuple(s.name for s in wrong),
        _helpful(advice),
    )


def _range_story(layer: LayerComparison) -> str:
    r = layer.range
    assert r.excess_db is not None and r.best_low is not None and r.best_high is not None
    width, best = r.high - r.low, r.best_high - r.best_low
    story = f"{layer.name} can hold {span(r.low, r.high)}, "
    if r.clipped > MUCH_CLIPPED:
        story += f"but its values reach {span(r.float_low, r.float_high)}, so that "
        story += f"{percent(r.clipped)} of them are cut off"
    elif best > 0 and width > best:
        story += f"{width / best:.1f} times what its values need ({span(r.best_low, r.best_high)})"
    else:
        story += f"but its values call for {span(r.best_low, r.best_high)}"
    return story + f": that makes {db(r.excess_db)} more noise than necessary."


def _wrong_weights(d: Diagnosis) -> Iterator[Finding]:
    wrong = [s for s in d.ranking if s.wrong_weights]
    if wrong:
        parts = []
        for suspect in wrong[:NAMED]:
            weight = d.comparison.layer(suspect.name).weight
            assert weight is not None
            parts.append(
                f"Those of {suspect.name} reach a signal-to-noise ratio of "
                f"{db(weight.error.sqnr_db)}, {db(weight.excess_db)} less than rounding must "
                "cost."
            )
        yield Finding(
            "wrong weights",
            "fault",
            f"{_these(wrong)} int8 weights are far from the float ones.",
            " ".join(parts) + _more(wrong) + " Their scales do not fit, or they were changed.",
            tuple(s.name for s in wrong),
            (Advice("Quantize the float model anew.", "qzoo.quantize.ptq(model, data)"),),
        )


def _per_tensor(d: Diagnosis) -> Iterator[Finding]:
    if get_backend(d.backend).per_channel:
        return
    tried = _experiment(d, "per-channel weights")
    if tried is None or _gain(d, tried) < WORTHWHILE_DB:
        return
    uneven = [la for la in d.comparison.layers if la.weight and la.weight.spread > 8]
    uneven.sort(key=lambda la: la.weight.error.sqnr_db if la.weight else math.inf)
    text = (
        f"The backend {d.backend} gives each weight one scale for all output channels. Where "
        "channels differ much in size, the small ones are left with a few integers."
    )
    if uneven and (weight := uneven[0].weight):
        text += (
            f" In {uneven[0].name} the largest channel is {weight.spread:.0f} times the smallest; "
            f"its worst channel has a signal-to-noise ratio of {db(weight.worst_channel_db)}."
        )
    yield Finding(
        "per-tensor weights",
        "loss" if matters(d) else "note",
        "One scale for each whole weight is too few.",
        text,
        tuple(la.name for la in uneven[:NAMED]),
        (
            _measured(
                d, tried, "Quantize for a backend with a scale per output channel.",
                'backend="onednn"', "--backend onednn",
            ),
        ),
    )  # fmt: skip


def _reduced(d: Diagnosis) -> Iterator[Finding]:
    tried = _experiment(d, "8-bit activations")
    if tried is not None and _gain(d, tried) >= WORTHWHILE_DB:
        yield Finding(
            "reduced range",
            "loss" if matters(d) else "note",
            "The layers' outputs use only 7 of the 8 bits.",
            f"The backend {d.backend} leaves one bit unused for the sake of CPUs whose 16-bit sums "
            "overflow (those without VNNI instructions).",
            advice=(
                _measured(
                    d, tried, "Quantize for all 8 bits, if the CPUs to run on have VNNI.",
                    'backend="onednn"', "--backend onednn",
                ),
            ),
        )  # fmt: skip


def _sensitive(d: Diagnosis) -> Iterator[Finding]:
    kept = [e for e in d.experiments if e.kind == "keep_float" and len(e.layers) <= MANY]
    worth = [e for e in kept if _gain(d, e) >= WORTHWHILE_DB]
    if not worth:
        return
    highest = max(_gain(d, e) for e in worth)
    enough = next(e for e in worth if _gain(d, e) >= highest - WORTHWHILE_DB)
    advice = []
    for experiment in dict.fromkeys((worth[0], enough)):
        count = len(experiment.layers)
        text = f"Keep {experiment.layers[0]} in float."
        if count > 1:
            text = f"Keep the {count} most sensitive layers in float."
        names = ", ".join(repr(n) for n in experiment.layers)
        flags = " ".join(f"--keep-float {n}" for n in experiment.layers)
        advice.append(_measured(d, experiment, text, f"keep_float=[{names}]", flags))
    advice.append(
        Advice(
            "Or let qzoo find the fewest layers for a drop that you name.",
            "qzoo.quantize.mixed.tune(model, data, max_drop=0.3)",
            "qzoo tune MODEL --data DATA --max-drop 0.3 -o tuned.safetensors",
        )
    )
    yield Finding(
        "sensitive layers",
        "loss" if matters(d) else "note",
        "A few layers' weights do most of the harm.",
        f"With the {len(enough.layers)} most sensitive ones in float, the logits are "
        f"{db(_gain(d, enough))} closer to the float model's."
        if len(enough.layers) > 1
        else f"With {enough.layers[0]} in float, the logits are {db(_gain(d, enough))} closer to "
        "the float model's.",
        enough.layers,
        _helpful(advice),
    )


def _outputs(d: Diagnosis) -> Iterator[Finding]:
    weights, outputs = _experiment(d, "weights in float"), _experiment(d, "outputs in float")
    if weights is None or outputs is None or not matters(d):
        return
    if outputs.damage.noise < weights.damage.noise / 2:
        yield Finding(
            "outputs",
            "loss",
            "Most of the noise comes from rounding the layers' outputs, not their weights.",
            f"With all weights in float the logits would still have a signal-to-noise ratio of "
            f"{db(weights.damage.sqnr_db)} only; with all outputs in float, "
            f"{db(outputs.damage.sqnr_db)}. Keeping layers in float, which concerns weights, "
            "cannot help much.",
            advice=(
                Advice("Use the recipe that corrects most.", 'recipe="best"', "--recipe best"),
                Advice("Or train the model while it is quantized.", "qzoo.quantize.qat"),
            ),
        )


def _clipping(d: Diagnosis) -> Iterator[Finding]:
    flagged = {s.name for s in d.ranking if s.wrong_range}
    cut = [
        la for la in d.comparison.layers
        if la.range.clipped > MUCH_CLIPPED and la.name not in flagged
    ]  # fmt: skip
    if cut:
        cut.sort(key=lambda la: -la.range.clipped)
        named = ", ".join(f"{la.name} ({percent(la.range.clipped)})" for la in cut[:NAMED])
        yield Finding(
            "clipping",
            "note",
            "Some layers cut off more values than usual.",
            f"{named}. Rounding the others more finely makes up for it, on average; if rare, large "
            "values matter to you, keep them.",
            tuple(la.name for la in cut),
            (
                Advice(
                    "Choose ranges that cut nothing off.",
                    'recipe=dataclasses.replace(qzoo.quantize.RECIPES["default"], '
                    'observer="minmax")',
                ),
            ),
        )


def _dead(d: Diagnosis) -> Iterator[Finding]:
    dead = [la for la in d.comparison.layers if la.dead_channels > la.channels / 20]
    if dead:
        dead.sort(key=lambda la: -la.dead_channels / la.channels)
        named = ", ".join(f"{la.name} ({la.dead_channels} of {la.channels})" for la in dead[:NAMED])
        yield Finding(
            "dead channels",
            "note",
            "Some channels are the same for every image in int8, though not in float.",
            f"{named}. Their values are too small for the steps that the layer's range leaves.",
            tuple(la.name for la in dead),
        )


def _few_images(d: Diagnosis) -> Iterator[Finding]:
    images = d.recipe.get("calibration_images")
    if isinstance(images, int) and images < 64:
        yield Finding(
            "few images",
            "note",
            f"The model was calibrated on {images} images only.",
            "A few hundred, of every class, are usual; with fewer, ranges cut other images off.",
            advice=(Advice("Calibrate on more images.", "images=512", "--images 512"),),
        )


def _experiment(d: Diagnosis, kind: str) -> Experiment | None:
    return next((e for e in d.experiments if e.kind == kind), None)


def _gain(d: Diagnosis, experiment: Experiment) -> float:
    """Returns by how many decibels the logits are better with a change; 0 where both are exact."""
    now = _experiment(d, "as it is")
    assert now is not None
    gain = experiment.damage.sqnr_db - now.damage.sqnr_db
    return 0.0 if math.isnan(gain) else gain


def _measured(
    d: Diagnosis, experiment: Experiment | None, text: str, python: str, command: str
) -> Advice:
    if experiment is None:
        return Advice(text, python, command)
    return Advice(text, python, command, _gain(d, experiment), experiment.damage.agreement)


def _helpful(advice: list[Advice]) -> tuple[Advice, ...]:
    """Returns the advice that helps: what gained most when tried, what was not tried, no other."""
    tried = [a for a in advice if a.gain_db is not None and a.gain_db >= NOTICEABLE_DB]
    tried.sort(key=lambda a: -(a.gain_db or 0.0))
    return (*tried, *(a for a in advice if a.gain_db is None))


def _these(suspects: list[Suspect]) -> str:
    if len(suspects) == 1:
        return f"{suspects[0].name}'s"
    return f"{len(suspects)} layers'"


def _more(suspects: list[Suspect]) -> str:
    return f" And {len(suspects) - NAMED} more." if len(suspects) > NAMED else ""
