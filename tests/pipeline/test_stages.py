"""What a stage of the pipeline refuses."""

from pathlib import Path

import pytest

from contracts import artifact
from contracts.config import Config
from contracts.layout import Workdir
from pipeline.stages import STAGES


@pytest.mark.parametrize("split", ["validation", "test"])
def test_nothing_is_trained_that_cannot_be_measured(split: str, tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    counts = {f"{s}_{what}": 3 for s in ("validation", "test") for what in ("users", "repeat_targets")}
    counts |= {"validation_users_without_history": 7, "test_users_without_history": 7, f"{split}_users": 0}
    with artifact.writing(workdir.windows.path, "windows", "f") as writer:
        writer.counts.update(counts)
    train = next(stage for stage in STAGES if stage.name == "train")
    with pytest.raises(ValueError, match=f"on the {split} split: 3 of its users .* 7 no event before it"):
        train.run(Config(), workdir, "f")
