"""One picture an operation from the rows of a benchmark: ``python -m visionkit_kernels.plot RESULTS.json``.

``python -m visionkit_kernels.bench --json RESULTS.json`` draws them too. Needs matplotlib.
"""

import json
import sys
from pathlib import Path

FORMS = dict(seconds="kernel", reference_seconds="PyTorch", compiled_seconds="torch.compile", sdpa_seconds="SDPA")


def draw(results: Path) -> list[Path]:
    """Writes ``<results' name>_<operation>.png`` beside the file: milliseconds of the forward pass, a group a shape.

    Returns:
        The pictures; an operation none of whose rows has a time gets none.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    content = json.loads(results.read_text())
    rows = [row for row in content["rows"] if "seconds" in row]
    pictures = []
    for op in dict.fromkeys(row["op"] for row in rows):
        chosen = [row for row in rows if row["op"] == op]
        forms = [form for form in FORMS if any(form in row for row in chosen)]
        figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.22 * len(forms) * len(chosen) + 0.5))
        for i, form in enumerate(forms):
            places = [n + i / (len(forms) + 1) for n in range(len(chosen))]
            bars = axes.barh(places, [1e3 * row.get(form, 0) for row in chosen], 0.9 / (len(forms) + 1))
            bars.set_label(FORMS[form])
            axes.bar_label(bars, [f"{1e3 * row[form]:.3g}" if form in row else "" for row in chosen], fontsize=7)
        axes.set_yticks([n + 0.3 for n in range(len(chosen))], [row["job"] for row in chosen], fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("ms, forward pass")
        axes.set_title(f"{op}, {content['device']}", fontsize=10)
        axes.legend(fontsize=8)
        path = results.with_name(f"{results.stem}_{op}.png")
        figure.savefig(path, dpi=110, bbox_inches="tight")
        pyplot.close(figure)
        pictures.append(path)
    return pictures


if __name__ == "__main__":
    for picture in draw(Path(sys.argv[1])):
        print(picture)
