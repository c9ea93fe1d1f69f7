"""Item embeddings leave a trained model as the file that mined negatives are drawn from."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from beam_jobs.sampling.mined_neighbors import read_item_embeddings
from contracts.artifact import write_json, writing
from contracts.layout import Model, Workdir
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.item_embeddings import main
from trainer.models.build import build_model


@pytest.mark.parametrize(("out", "file"), [("e.parquet", "e.parquet"), ("e.v1", "e.v1.parquet")])
def test_embeddings_are_the_models_in_the_order_of_the_ids(
    out: str, file: str, workdir: Workdir, tmp_path: Path
) -> None:
    config = small_config()
    model = build_model(config, Catalogue.for_config(config, workdir))
    with writing(workdir.model("to_mine").path, Model.KIND, "f") as artifact:
        model.save_weights(str(Model(artifact.path).weights))
        write_json(Model(artifact.path).config, config.model_dump(mode="json"))
    arguments = ["--workdir", str(workdir.path), "--model", "to_mine", "--out", str(tmp_path / "new" / out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    ids = pq.read_table(workdir.item_statistics.items)["item_id"]
    expected = model.candidate_embeddings(np.arange(1, len(ids) + 1)).numpy()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [file]
    written = pq.read_table(tmp_path / "new" / file)
    assert written["item_id"].to_pylist() == ids.to_pylist()
    np.testing.assert_allclose(written["embedding"].to_pylist(), expected, atol=1e-5)
    mined_from = read_item_embeddings(str(tmp_path / "new" / file), ids.combine_chunks())
    np.testing.assert_allclose(mined_from, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_no_such_model(workdir: Workdir, tmp_path: Path) -> None:
    arguments = ["--workdir", str(workdir.path), "--model", "nobody", "--out", str(tmp_path / "e.parquet")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "no artifact at" in result.output
