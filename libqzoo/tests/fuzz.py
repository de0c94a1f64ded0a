"""Fuzzes libqzoo: files and the reader of them, or nodes that are built from bytes.

    python libqzoo/tests/fuzz.py file --seconds 1200
    python libqzoo/tests/fuzz.py nodes --seconds 1200

Needs clang with libFuzzer (Debian: apt-get install clang), and a checkout whose tests can be
imported. Models are run in plain C and by every set of kernels that the processor has; any
difference, any error of memory and any undefined behaviour is a finding. What led to one lies in
the folder then; the program that it prints runs it again. Findings and inputs that reached new code
stay in the folder, where the next run goes on from them.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "-std=c11", "-O2", "-g", "-ffp-contract=off", "-fno-math-errno", "-pthread",
    "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined",
    "-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION",  # no checksums, which hide what is behind them
)  # fmt: skip
#: Of each target. Its comparisons say nothing of bytes that nodes are built from, and take long.
MORE = {"file": (), "nodes": ("-fno-sanitize-coverage=trace-cmp",)}
#: Longest inputs, in bytes.
LONGEST = {"file": 32768, "nodes": 400}


def file_seeds() -> list[bytes]:
    """Returns small artifacts: random graphs, and one with every operation."""
    from hypothesis import Phase, given, settings

    from qzoo.artifact.format import Artifact, ModelInfo
    from qzoo.artifact.graph import Graph
    from tests.helpers.drawn import graphs
    from tests.helpers.graphs import any_artifact, every_operation

    found = [any_artifact().to_bytes(), every_operation().to_bytes()]

    @settings(max_examples=60, derandomize=True, database=None, phases=[Phase.generate])
    @given(graphs())
    def collect(drawn: tuple[Graph, object]) -> None:
        graph, _ = drawn
        info = ModelInfo(None, backend="onednn")
        found.append(Artifact.from_graph(graph.nodes, graph.tensors, info).to_bytes())

    collect()
    return [content for content in found if len(content) <= LONGEST["file"]]


def node_seeds() -> list[bytes]:
    """Returns random bytes, of which the first says whether numbers may be anything."""
    seeds = []
    for seed in range(60):
        source = random.Random(seed)
        seeds.append(bytes([seed % 4]) + source.randbytes(source.choice((100, 200, 300))))
    return seeds


def main() -> int:
    """Compiles a fuzzer, runs it, and says what it found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=("file", "nodes"))
    parser.add_argument("--seconds", type=int, default=1200, help="how long to run")
    parser.add_argument("--folder", type=Path, help="for inputs and findings; default: fuzz-TARGET")
    parser.add_argument("--compiler", default="clang")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(f"fuzz-{arguments.target}")).resolve()
    inputs = folder / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(file_seeds() if arguments.target == "file" else node_seeds()):
        (inputs / f"seed-{number}").write_bytes(seed)
    program = folder / "fuzz"
    sources = ROOT / "libqzoo"
    files = [sources / "tests" / f"fuzz_{arguments.target}.c", *sources.glob("src/*.c")]
    flags = [*FLAGS, *MORE[arguments.target], f"-I{sources}", f"-I{sources / 'include'}"]
    command = [arguments.compiler, *flags, *map(str, files), "-lm", "-o", str(program)]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"The fuzzer was not compiled: {error}", file=sys.stderr)
        return 2
    more = [f"-max_len={LONGEST[arguments.target]}", f"-max_total_time={arguments.seconds}",
            "-len_control=0", "-timeout=60", "-print_final_stats=1"]  # fmt: skip
    done = subprocess.run(
        [str(program), *more, str(inputs)], cwd=folder, stderr=subprocess.PIPE, text=True,
        errors="replace",
    )  # fmt: skip
    (folder / "log").write_text(done.stderr, encoding="utf-8")
    count = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    print(f"{count[1] if count else 'no'} executions in up to {arguments.seconds} seconds")
    if done.returncode:
        findings = sorted(folder.glob("crash-*")) + sorted(folder.glob("timeout-*"))
        print("\n".join(f"finding: {program} {path}" for path in findings), file=sys.stderr)
        print(f"{folder / 'log'} says what happened.", file=sys.stderr)
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
