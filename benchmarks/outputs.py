"""Files that a benchmark's options name: better to find out before hours of measuring than after that one cannot be."""

from __future__ import annotations

import argparse
from pathlib import Path

from contracts.storage import make_directory
from pipeline.benchmark_table import json_file


def output_file(name: str) -> Path:
    """The path of a file to write, in a directory that exists.

    Raises:
        ArgumentTypeError: the directory cannot be made.
    """
    try:
        make_directory(Path(name).parent, "its directory")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None  # of other errors, argparse leaves the text out
    return Path(name)


def json_output(name: str) -> Path:
    """As `output_file`, for a JSON file.

    Raises:
        ArgumentTypeError: the name does not end in .json, or its directory cannot be made.
    """
    try:
        json_file(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return output_file(name)
