"""A run's groups in readable form, and a sweep over K, in Markdown.

python -m benchmarks.group_tables --workdir DIR --title TEXT --markdown PATH
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from beam_jobs.group_sweep import sweep_row
from benchmarks.outputs import output_file
from contracts.artifact import read_manifest
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.storage import write_text

SWEEP = (5, 10, 20, 50, 100)
TITLES = 4


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="a run whose groups stage is done")
    parser.add_argument("--title", required=True, help="of the data set, for the heading")
    parser.add_argument("--markdown", type=output_file, required=True, help="file to write")
    arguments = parser.parse_args()
    workdir = Workdir(arguments.workdir)
    config, artifact = load_config(workdir.config), workdir.item_groups
    manifest = read_manifest(artifact.path)
    lines = [f"# Groups of {arguments.title}", "", f"`{json.dumps(manifest.counts)}`", ""]
    if "drift" in manifest.details:
        lines += [f"Since the groups of `groups.previous`: `{json.dumps(manifest.details['drift'])}`", ""]
    groups = json.loads(artifact.report.read_text(encoding="utf-8"))
    kept = any("kept" in group for group in groups)
    lines += ["| group | items | label | most popular items |" + (" kept |" if kept else "")]
    lines += ["|---|---|---|---|" + ("---|" if kept else "")]
    for group in groups:
        row = [str(group["group_id"]), f"{group['size']:,}", group["label"], "; ".join(group["top_items"][:TITLES])]
        lines.append(f"| {' | '.join([*row, str(group['kept'])] if kept else row)} |")
    rows = np.load(artifact.embeddings)
    rows = rows[rows.any(axis=1)]
    lines += ["", "## Sweep over K", "", "| K | explained variance | largest / mean | smallest / mean | silhouette |"]
    lines.append("|---|---|---|---|---|")
    for number in SWEEP:
        row_of_k = sweep_row(rows, number, config.groups, config.seed)
        lines.append(
            f"| {number} | {row_of_k.explained:.3f} | {row_of_k.largest:.2f} | {row_of_k.smallest:.2f} "
            f"| {row_of_k.silhouette:.3f} |"
        )
    write_text(arguments.markdown, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
