"""`dnc index` on the smoke run: new items are served without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from contracts.layout import MAIN_MODEL, Workdir
from pipeline.stages import exported_servable
from serving.export import MANIFEST_FILE
from serving.servable_session import ServableSession
from tests.end_to_end.conftest import SmokeRun, run_dnc


@pytest.mark.slow
def test_new_items_are_served_and_only_their_groups_are_built(smoke: SmokeRun, tmp_path: Path) -> None:
    data = Path(shutil.copytree(smoke.data, tmp_path / "data"))
    with (data / "items.csv").open("a", encoding="utf-8") as file:
        file.write('"new","New","topic-0",8.5\n')
    command = ["index", "-c", "configs/smoke.yaml", "-w", str(tmp_path / "today"), "--model", str(smoke.workdir)]
    for key, value in {
        "data.events": f"{data}/events-*.csv",
        "data.user_features.path": f"{data}/users.csv",
        "data.item_features.path": f"{data}/items.csv",
    }.items():
        command += ["--set", f"{key}={value}"]
    done = run_dnc(*command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "600 items known to the model and 1 new ones; 1 of 6 groups reindexed" in done.stdout
    before, after = (exported_servable(Workdir(path)) for path in (smoke.workdir, tmp_path / "today"))
    manifest = json.loads((after / MANIFEST_FILE).read_text())
    with ServableSession(before) as old, ServableSession(after) as new:
        known = [f"i{index}" for index in range(600)]
        vectors, groups = new.candidate_embedding([*known, "new"])
        old_vectors, old_groups = old.candidate_embedding([*known, "new"])
        np.testing.assert_allclose(vectors[:600], old_vectors[:600], rtol=1e-5, atol=1e-6)
        assert groups[:600].tolist() == old_groups[:600].tolist()
        assert (old_groups[600], manifest["details"]["rebuilt_groups"]) == (-1, [groups[600]])
        assert vectors[600].any()
        lists = new.recommend([["i1", "i2"]], num_candidates=20, num_exploration=1)
        assert "new" in lists.item_ids[0]
    again = run_dnc(*command)
    assert again.stderr.count("up to date, skipped") == 8
    assert Workdir(tmp_path / "today").model(MAIN_MODEL).weights.exists()
    refused = run_dnc(*command[:4], str(smoke.workdir), *command[5:])
    assert refused.returncode == 2
    assert "must write to another one" in refused.stderr
