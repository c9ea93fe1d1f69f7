"""A log whose pages say what is wanted, from CSV to the answers of the servable."""

import json
from pathlib import Path

import numpy as np
import pytest

from contracts.layout import Workdir
from contracts.names import Signature
from pipeline.stages import exported_servable
from serving.servable_session import ServableSession
from tests.end_to_end.conftest import invoke, run_dnc

PAGES = {"home": range(20), "search": range(20, 40)}
"""Page -> the items that users take there, in any order."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command, and its workdir."""
    folder, rng = tmp_path_factory.mktemp("pages"), np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp,page"]
    for user in range(300):
        left = {page: rng.permutation(list(items)).tolist() for page, items in PAGES.items()}
        pages = rng.choice(list(PAGES), 12)
        lines += [f"u{user},i{left[page].pop()},{time},{page}" for time, page in enumerate(pages)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    settings = [
        f"data.events={folder}/log.csv", "data.request_features=[{name: page, values: [home, search]}]",
        "data.num_buckets=2", "groups.num_groups=3", "windows.length=12", "model.embedding_dim=16",
        "model.num_layers=1", "training.epochs=12", "evaluation.ks=[10]", "serving.indexes=[exact]",
        "evaluation.bootstrap_samples=0",
    ]  # fmt: skip
    command = ["run", "-c", "configs/events.yaml", "-w", str(folder / "run")]
    for setting in settings:
        command += ["--set", setting]
    done = run_dnc(*command)
    assert done.returncode == 0, done.stderr[-4000:]
    return command, folder / "run"


def test_the_servable_finds_what_the_page_says(run: tuple[list[str], Path]) -> None:
    """Of about 14 new items of the page, 10 hold .7 of the targets; of all about 28, .36."""
    metrics = json.loads((Workdir(run[1]).validation / "metrics.json").read_text())
    assert metrics["dnc_servable"]["recall_at_10"]["value"] > 0.6
    with ServableSession(exported_servable(Workdir(run[1]))) as session:
        assert "page" in session.signatures[Signature.SERVING_DEFAULT].inputs
        for page, items in PAGES.items():
            (found,) = session.recommend([["i1", "i21"]], page=page, num_candidates=10).item_ids
            assert np.isin(found, [f"i{item}" for item in items]).mean() > 0.9, page


def test_a_query_tells_its_page(run: tuple[list[str], Path]) -> None:
    asked = ["query", "-w", str(run[1]), "--history", "i1,i21", "-m", "10", "--json"]
    for page, items in PAGES.items():
        done = invoke(*asked, "--request", f"page={page}")
        found = [json.loads(line)["item_id"] for line in done.stdout.splitlines()]
        assert np.isin(found, [f"i{item}" for item in items]).mean() > 0.9, done.output
    for wrong, said in {
        "page=cellar": "(values of page: home, search)",
        "floor=home": "as in data.request_features (page)",
        "page": "(values of page: home, search)",
    }.items():
        done = invoke(*asked, "--request", wrong)
        assert (done.exit_code, said in done.stderr) == (2, True), done.output


def test_other_values_are_read_anew(run: tuple[list[str], Path]) -> None:
    """The codes of the events would mean other values."""
    command, workdir = run
    done = run_dnc(*command[:4], str(workdir), *command[5:], "--set",
                   "data.request_features=[{name: page, values: [search, home]}]", "--to", "ingest")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ingest: " in done.stderr and "up to date, skipped" not in done.stderr
