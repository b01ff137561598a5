"""Draws the curves of benchmarks.precision, and prints its table.

    python -m benchmarks.precision_figures results.jsonl [--plot curve.png]

The table is of the last step: means over seeds, and their standard deviation. A gap is an arm's held-out loss minus
FP32's of the same seed; it is to be held against the deviation of FP32's own losses, and the distance against that of
FP32 with other noise.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Point = dict[str, Any]  # a line of benchmarks.precision: the fields of its Point

NAMES = {
    "fp32": "FP32",
    "bf16": "BF16, adapter FP32 (loraq)",
    "pure_bf16": "BF16, adapter too",
    "by_lot": "BF16, adapter rounded by lot",
    "nearest": "BF16, adapter rounded, AdamW FP32",
    "other_draws": "FP32, other noise and order",
}
_STYLES = {"bf16": (0, (4, 4)), "other_draws": ":", "by_lot": "--", "nearest": "-."}  # FP32 shows through loraq's


def read(path: Path) -> list[Point]:
    """The points of a file of results; the first line, about the machine, is none."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "arm" in line]


def plot(points: Sequence[Point], path: Path, arms: Sequence[str] = ("fp32", "bf16", "pure_bf16")) -> None:
    """Held-out loss over step, one panel a learning rate: the seeds' mean, and thin each seed."""
    rates = sorted({point["learning_rate"] for point in points})
    figure = Figure(figsize=(4.5 * len(rates), 3.6), layout="constrained")
    for panel, rate in zip(figure.subplots(1, len(rates), squeeze=False)[0], rates, strict=True):
        for number, arm in enumerate(arm for arm in arms if any(point["arm"] == arm for point in points)):
            colour, style = f"C{number}", _STYLES.get(arm, "-")
            by_seed: dict[int, dict[int, float]] = defaultdict(dict)
            for point in points:
                if (point["arm"], point["learning_rate"]) == (arm, rate):
                    by_seed[point["seed"]][point["step"]] = point["validation_loss"]
            steps = sorted(set.intersection(*map(set, by_seed.values())))
            for losses in by_seed.values():
                panel.plot(*zip(*sorted(losses.items()), strict=True), color=colour, linewidth=0.5, alpha=0.5)
            means = [mean(losses[step] for losses in by_seed.values()) for step in steps]
            panel.plot(steps, means, color=colour, linestyle=style, linewidth=2, marker="o", markersize=3)
            panel.plot([], [], color=colour, linestyle=style, linewidth=2, label=NAMES[arm])
        panel.set(title=f"learning rate {rate:g}", xlabel="step", ylabel="loss of stars held out")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=110)


def table(points: Sequence[Point]) -> str:
    """Markdown, one row an arm and learning rate, at the last step that all its seeds reached."""
    rows = [
        "| learning rate | arm | seeds | step | held-out loss | gap to FP32 | distance | A moved | B moved | stars |"
    ]
    rows.append("| --- " * 10 + "|")
    for rate in sorted({point["learning_rate"] for point in points}):
        of_rate = [point for point in points if point["learning_rate"] == rate]
        theirs = {(point["seed"], point["step"]): point for point in of_rate if point["arm"] == "fp32"}
        for arm in NAMES:
            ours = {(point["seed"], point["step"]): point for point in of_rate if point["arm"] == arm}
            if not ours:
                continue
            seeds = sorted({seed for seed, _ in ours})
            step = min(max(step for at, step in ours if at == seed) for seed in seeds)
            last = [ours[seed, step] for seed in seeds]
            gaps = [ours[seed, step]["validation_loss"] - theirs[seed, step]["validation_loss"] for seed in seeds]
            cells = [f"{rate:g}", NAMES[arm], str(len(seeds)), str(step)]
            cells += [_spread([point["validation_loss"] for point in last]), "" if arm == "fp32" else _spread(gaps)]
            cells += ["" if arm == "fp32" else f"{mean(point['distance'] for point in last):.3f}"]
            cells += [f"{_whole(ours, seeds, step, which):.1%}" for which in ("moved_a", "moved_b")]
            stars = [point["stars"] for point in last if point["stars"] is not None]
            cells += [f"{mean(stars):.0%}" if stars else ""]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _whole(points: dict[tuple[int, int], Point], seeds: Sequence[int], step: int, which: str) -> float:
    """The mean over all steps, from means since the point before; points lie equally far apart."""
    return mean(point[which] for (seed, at), point in points.items() if seed in seeds and at <= step)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.5f}" + (f" ± {stdev(values):.5f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the curves of benchmarks.precision, and print its table.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    points = [point for path in arguments.results for point in read(path)]
    if arguments.plot:
        plot(points, arguments.plot)
    print(table(points))


if __name__ == "__main__":
    main()
