"""What the runs in a folder of results score where scores are published, as the table that comes with the package:

PYTHONPATH=. python tests/own_runs.py > dreamer/data/own_runs.csv
"""

import csv
import io
from pathlib import Path

import numpy as np

from dreamer.results import published, scores

CURVES = Path(__file__).parent.parent / "runs" / "results" / "curves"


def table(results: Path) -> str:
    """CSV with a row for each task, method and number of frames, over the seeds that have come to those."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "method", "frames", "seeds", "mean", "min", "max", "stdev"])
    curves = [scores.read(path.parent) for path in sorted(results.glob("*/scores.csv"))]
    for (task, method), runs in scores.grouped(curves).items():
        for band in published.curve(task):
            there = [run for run in runs if run.frames[0] <= band.frames <= run.end]
            values = [run.at(band.frames, published.window(task)) for run in there]
            if values:
                spread = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
                figures = (f"{value:.2f}" for value in (np.mean(values), min(values), max(values)))
                writer.writerow([task, method, band.frames, len(values), *figures, spread])
    return out.getvalue()


if __name__ == "__main__":
    print(table(CURVES), end="")
