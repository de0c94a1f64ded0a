"""The report: one page of HTML that needs nothing else, for someone who has never seen one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..compare import LayerComparison
from ..findings import Advice, Finding, matters
from ..words import ENDLESS_DB, db, escape
from . import charts

if TYPE_CHECKING:
    from ..diagnose import Diagnosis

#: Layers that are shown with their histograms.
WORST = 6

_GLOSSARY = (
    (
        "int8",
        "Whole numbers from 0 to 255 (or -128 to 127) in place of decimal fractions. The model "
        "gets a quarter of its size and runs faster; every value is rounded to the nearest of 256.",
    ),
    (
        "Layer",
        "One step of the computation. Its weights are what training learned; its outputs are what "
        "it hands to the next layer, different for each picture. Both are rounded.",
    ),
    (
        "Top-1",
        "How often the model's first answer is right. The interval says where it would lie, in 95 "
        "of 100 cases, had other pictures of the same kind been taken.",
    ),
    (
        "Signal-to-noise ratio, in decibels (dB)",
        "How strong a layer's values are beside the error that rounding adds (also called SQNR). "
        "20 dB: the error is a tenth of the values; 40 dB: a hundredth; 0 dB: as large as they "
        "are. 6 dB more halve the error.",
    ),
    (
        "Scale, range, grid",
        "The 256 whole numbers stand for 256 evenly spaced values from the lower to the upper end "
        "of a range; the distance of two neighbours is the scale. A range too wide makes the steps "
        "coarse, one too narrow cuts large values off.",
    ),
    (
        "Alone and accumulated",
        "Alone: what a layer gets wrong if all before it were exact. Accumulated: with the errors "
        "of all layers before it, as when the model really runs.",
    ),
    (
        "Kept in float",
        "A layer that goes on computing with decimal fractions. It costs speed and size, and gives "
        "accuracy back.",
    ),
    (
        "Logits",
        "The last layer's outputs, one number per class; the largest is the answer.",
    ),
)


def render(diagnosis: Diagnosis) -> str:
    """Returns the report as HTML; every name in it is escaped, and nothing is fetched."""
    d = diagnosis
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    title = f"{d.architecture}: int8 beside float"
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>",
            f'<p class="soft">Quantized for the backend {escape(d.backend)}{_how(d)}.</p></header>',
            "<main>",
            _headline(d),
            _findings(d),
            _where(d),
            _harm(d),
            _worst(d),
            _table(d),
            _glossary(),
            _measured(d),
            "</main>",
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def _headline(d: Diagnosis) -> str:
    a = d.accuracy
    cards = []
    if a.float_top1 is not None and a.int8_top1 is not None and a.drop is not None:
        assert a.float_interval and a.int8_interval and a.drop_interval
        cards += [
            ("float top-1", f"{a.float_top1:.2f} %", f"95 %: {_interval(a.float_interval)}"),
            ("int8 top-1", f"{a.int8_top1:.2f} %", f"95 %: {_interval(a.int8_interval)}"),
            ("lost", f"{a.drop:.2f} points", f"95 %: {_interval(a.drop_interval)}"),
        ]
    cards += [
        ("same first answer", f"{a.agreement:.2f} %", f"95 %: {_interval(a.agreement_interval)}"),
        ("size of int8", _size(d.int8_bytes), f"float: {_size(d.float_bytes)}"),
    ]
    items = "".join(
        f"<li><span>{escape(name)}</span><b>{_bound(value)}</b><span>{escape(note)}</span></li>"
        for name, value, note in cards
    )
    return f'<p class="lead">{_bound(_verdict(d))}</p>\n<ul class="cards">{items}</ul>'


def _verdict(d: Diagnosis) -> str:
    a = d.accuracy
    size = f"It takes {100 * d.int8_bytes / d.float_bytes:.0f} % of the float model's size."
    if a.drop is None or a.drop_interval is None:
        changed = 100 - a.agreement
        return f"Int8 changes the first answer to {changed:.2f} % of {a.images} pictures. {size}"
    if a.drop_interval[0] <= 0 <= a.drop_interval[1]:
        return (
            f"Int8 loses {a.drop:.2f} points of top-1 on {a.images} pictures, which may be chance: "
            f"the interval reaches from {_interval(a.drop_interval)}. {size}"
        )
    verb = "loses" if a.drop > 0 else "gains"
    return (
        f"Int8 {verb} {abs(a.drop):.2f} points of top-1 on {a.images} pictures, more than chance "
        f"explains. {size}"
    )


def _findings(d: Diagnosis) -> str:
    intro = (
        "The first thing listed is the first thing to do."
        if matters(d)
        else "Int8 costs next to nothing here; what follows would make it still more exact."
    )
    if [f.kind for f in d.findings] == ["fine"]:
        intro = "There is nothing to do."
    articles = "\n".join(_finding(f) for f in d.findings)
    return f'<section id="next"><h2>What to try next</h2><p>{intro}</p>\n{articles}</section>'


def _finding(finding: Finding) -> str:
    tag = {"fault": "Fault", "loss": "Loss", "note": "Note"}[finding.severity]
    advice = "".join(_advice(a) for a in finding.advice)
    return (
        f'<article class="{finding.severity}"><h3><span class="tag">{tag}</span> '
        f"{_bound(finding.title)}</h3><p>{_bound(finding.text)}</p>"
        + (f'<ul class="advice">{advice}</ul>' if advice else "")
        + "</article>"
    )


def _advice(advice: Advice) -> str:
    text = _bound(advice.text)
    if advice.gain_db is not None and advice.agreement is not None:
        gain = (
            f"Tried out: {advice.gain_db:+.1f} dB on the logits, same first answer "
            f"{advice.agreement:.1f} %."
        )
        text += f' <span class="gain">{_bound(gain)}</span>'
    codes = [f"<code>{escape(c)}</code>" for c in (advice.python, advice.command) if c]
    return f"<li>{text}" + (f"<br>{' or '.join(codes)}" if codes else "") + "</li>"


def _where(d: Diagnosis) -> str:
    worst = sorted(d.comparison.layers, key=lambda la: la.alone.sqnr_db)[:3]
    marked = [s.name for s in d.ranking if s.wrong] or [la.name for la in worst]
    return _section(
        "where",
        "Where it is lost",
        "How exact each layer is, from the first to the last. Tall bars are good; the line falls "
        "where errors pile up. A bar much shorter than its neighbours is a layer to look at.",
        charts.profile(d.comparison, marked),
        '<span class="key one"></span>the layer alone'
        '<span class="key two"></span>with all before it (line)'
        '<span class="key bad"></span>layers to look at first',
    )


def _harm(d: Diagnosis) -> str:
    note = (
        "Layers whose numbers do not fit come first, whatever they cost; then all others by what "
        "they cost."
        if any(s.wrong for s in d.ranking)
        else "The longer the bar, the more the answers change on its account."
    )
    first = _section(
        "harm",
        "Which layers do harm",
        "What each layer does to the model's answers if it is the only one in int8. " + note,
        charts.damage_bars(d.ranking, d.sensitivity),
        '<span class="key one"></span>by its weights'
        '<span class="key two"></span>by its outputs. Beside the bar: signal-to-noise ratio of the '
        "logits, and how often the first answer stays the same.",
    )
    second = (
        "<h3>What keeping layers in float gives back</h3><p>The layers with the most harmful "
        "weights, in float one after the other. Where the line gets flat, more of them are of no "
        "use. Measured on the simulation, not estimated.</p>"
        + _figure(charts.keep_float_curve(d.experiments), "")
    )
    return f"{first}\n{second}"


def _worst(d: Diagnosis) -> str:
    parts = []
    for suspect in d.ranking[:WORST]:
        layer = d.comparison.layer(suspect.name)
        pair = _figure(charts.output_histogram(layer), _output_note(layer))
        if layer.weight is not None:
            pair += _figure(charts.weight_histogram(layer), _weight_note(layer))
        why = "does not fit" if suspect.wrong else "among the most harmful"
        parts.append(
            f"<h3>{escape(layer.name)} <span class='soft'>({escape(layer.op)}, {why})</span></h3>"
            f'<div class="pair">{pair}</div>'
        )
    return (
        '<section id="worst"><h2>The first layers to look at</h2><p>How the float values are '
        "spread, and what int8 can hold of them (shaded). Heights are logarithmic: each step down "
        f"is a rarer value. {_key('bad')}values beyond the range, which are cut off.</p>\n"
        + "\n".join(parts)
        + "</section>"
    )


def _key(css: str) -> str:
    return f'<span class="key {css}"></span>'


def _output_note(layer: LayerComparison) -> str:
    r = layer.range
    return (
        f"Outputs. The range holds {r.low:.3g} to {r.high:.3g} in steps of {r.scale:.3g}; values "
        f"reach {r.float_low:.3g} to {r.float_high:.3g}. Cut off: {100 * r.clipped:.2g} %; int8 "
        f"outputs at an end: {100 * r.saturated:.2g} %."
    )


def _weight_note(layer: LayerComparison) -> str:
    w = layer.weight
    assert w is not None
    scales = "a scale per channel" if w.per_channel else "one scale for all channels"
    return (
        f"Weights, with {scales}: {db(w.error.sqnr_db)}; the worst channel "
        f"{db(w.worst_channel_db)}. The largest channel is {w.spread:.3g} times the smallest."
    )


_COLUMNS = (
    ("layer", "which"),
    ("op", "what it computes"),
    ("alone", "signal-to-noise ratio alone, dB"),
    ("accum.", "accumulated, dB"),
    ("weights", "of the weights, dB"),
    ("cosine", "alone"),
    ("max error", "alone, in steps"),
    ("clipped", "float values cut off, %"),
    ("saturated", "int8 outputs at an end, %"),
    ("dead", "channels that never change"),
    ("harm", "signal-to-noise ratio of the logits with this layer alone in int8, dB"),
)


def _table(d: Diagnosis) -> str:
    harm = {s.name: s for s in d.ranking}
    head = "".join(f'<th scope="col" title="{escape(t)}">{escape(n)}</th>' for n, t in _COLUMNS)
    rows = []
    for layer in d.comparison.layers:
        suspect = harm.get(layer.name)
        cells = [
            layer.name + (" (float)" if layer.kept_float else ""),
            layer.op,
            _bare(layer.alone.sqnr_db),
            _bare(layer.accumulated.sqnr_db),
            "" if layer.weight is None else _bare(layer.weight.error.sqnr_db),
            f"{layer.alone.cosine:.5f}",
            f"{layer.alone.max_steps:.1f}",
            f"{100 * layer.range.clipped:.3f}",
            f"{100 * layer.range.saturated:.3f}",
            f"{layer.dead_channels} of {layer.channels}",
            "" if suspect is None else _bare(suspect.damage.sqnr_db),
        ]
        css = ' class="bad-row"' if suspect is not None and suspect.wrong else ""
        rows.append(f"<tr{css}>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    return (
        '<section id="layers"><h2>All layers</h2><details><summary>'
        f"The figures of all {len(rows)} roundings</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details></section>"
    )


def _glossary() -> str:
    items = "".join(f"<dt>{escape(n)}</dt><dd>{escape(t)}</dd>" for n, t in _GLOSSARY)
    return f'<section id="words"><h2>What the words mean</h2><dl>{items}</dl></section>'


def _measured(d: Diagnosis) -> str:
    m = d.measured
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    text = (
        f"Top-1 on {m['accuracy_images']} pictures, layers compared on {m['images']}, tried alone "
        f"on {m['sensitivity_images']}; seed {m['seed']}. {versions}."
    )
    return (
        '<section id="measured"><h2>How this was measured</h2><p>Int8 layers were run by '
        "PyTorch's kernels; layers alone in int8 and all that was tried out, by a simulation of "
        f'the same numbers in float.</p><p class="soft">{escape(text)}</p></section>'
    )


def _section(name: str, title: str, text: str, svg: str, caption: str) -> str:
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2><p>{escape(text)}</p>'
        f"{_figure(svg, caption, True)}</section>"
    )


def _figure(svg: str, caption: str, is_html: bool = False) -> str:
    text = caption if is_html else _bound(caption)
    return f"<figure>{svg}" + (f"<figcaption>{text}</figcaption>" if text else "") + "</figure>"


def _how(d: Diagnosis) -> str:
    parts: list[str] = []
    if (recipe := d.recipe.get("ptq_recipe")) is not None:
        parts.append(f" by the recipe {escape(str(recipe))}")
    if (images := d.recipe.get("calibration_images")) is not None:
        parts.append(f" on {escape(str(images))} pictures")
    if d.float_layers:
        parts.append(f", with {len(d.float_layers)} layers kept in float")
    return "".join(parts)


def _interval(ends: Iterable[float]) -> str:
    low, high = ends
    return f"{low:.2f} to {high:.2f}"


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


def _bound(text: str) -> str:
    """Returns escaped text whose numbers and units stay on one line."""
    for unit in ("%", "dB", "MiB", "points"):
        text = text.replace(f" {unit}", f"\N{NO-BREAK SPACE}{unit}")
    return escape(text)


def _bare(value: float) -> str:
    return "∞" if value > ENDLESS_DB else f"{value:.1f}"
