"""The Beam side on an object store: the same files as on a local disk, nothing half-written, one run at a time."""

from __future__ import annotations

import base64
import bz2
import gzip
import importlib.util
import re
import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
from apache_beam.internal import pickler
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from click.testing import CliRunner

from beam_jobs import groups, ingest, statistics, transform, windows
from beam_jobs.common.object_store import BeamStore
from beam_jobs.grouping.distributed_kmeans import AssignBlock
from benchmarks.beam_runners import write_config
from contracts import lock, storage
from contracts.artifact import current, find_manifest, read_manifest
from contracts.config import Config
from contracts.config_io import dump_config, load_config
from contracts.layout import Events, Transform, Workdir
from contracts.patterns import identities, matching
from contracts.storage import StorageError, as_path
from contracts.store_layout import SpanParts
from pipeline.cli import main
from pipeline.retraining.span_profile import profile_span
from pipeline.retraining.spans import find_spans
from tests.beam_jobs import dataflow_dry_run, strict_store

JOBS = (ingest, statistics, groups, transform, windows)
LETTERS = [Events(Path()).dead_letters(source).name for source in range(3)]
BUCKET = "strict://bucket"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the store keeps its objects."""
    folder = tmp_path / "store"
    folder.mkdir()
    monkeypatch.setenv(strict_store.ROOT, str(folder))
    storage.connect(())
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, feature tables and mined embeddings, with `config.yaml`, which names them by their local paths."""
    folder = tmp_path_factory.mktemp("log")
    write_config(folder)
    rows = "".join(f"i{i},colour{i % 3},{i / 7}\n" for i in range(45))
    (folder / "items.csv").write_text(f"item_id,colour,price\n{rows}")
    return folder


def config_of(log: Path, place: str) -> Config:
    """The config of `log` with its files at `place`."""
    features = [{"name": "colour", "kind": "categorical"}, {"name": "price", "kind": "numeric"}]
    config = load_config(log / "config.yaml")
    tree = config.model_dump(mode="json")
    tree["data"]["events"] = [f"{place}/log-*.csv"]
    tree["data"]["item_features"] = {"path": f"{place}/items.csv", "id": "item_id", "features": features}
    tree["windows"]["mined_from"] = f"{place}/e.npz"
    return Config.model_validate(tree)


@pytest.fixture(scope="module")
def expected(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All jobs on a local disk."""
    folder = tmp_path_factory.mktemp("local")
    for job in JOBS:
        job.run(config_of(log, str(log)), Workdir(folder), "fingerprint")
    return folder


def parts(path: Path) -> list[Path]:
    run = Workdir(path)
    return [part.path for part in (run.events, run.item_statistics, run.item_groups, run.transform, run.windows)]


def contents(path: Path) -> dict[str, bytes]:
    """The data files of all artifacts, gzip undone, and what TensorFlow looks up in the graphs."""
    found = {}
    for part in filter(find_manifest, parts(path)):
        folder, manifest = current(part), read_manifest(part)
        assets = ["items/transform_fn/assets/item_vocabulary.txt", "items/transform_fn/assets/colour_vocabulary"]
        more = {Transform.KIND: assets, Events.KIND: LETTERS}.get(manifest.kind, [])
        for name in [*manifest.files, *more]:
            with storage.open_binary(folder / name) as stream:
                data = stream.read()
            found[f"{part.name}/{name}"] = gzip.decompress(data) if name.endswith(".gz") else data
    return found


def put_log(log: Path, url: str) -> None:
    storage.store_tree(log, as_path(url))


def local_letters(contents: dict[str, bytes], log: Path, place: str) -> dict[str, bytes]:
    """Dead letters name their source: what they would say of a log at `place`."""
    letters = {f"events/{name}": contents[f"events/{name}"] for name in LETTERS}
    return contents | {name: data.replace(str(log).encode(), place.encode()) for name, data in letters.items()}


@pytest.mark.parametrize("scheme", ["strict://bucket", "file://localhost"])
def test_every_job_writes_what_it_writes_to_a_disk(
    scheme: str, log: Path, expected: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow opens file:// itself, as it opens gs://, and not the other, as it does not open s3://."""
    place = scheme if scheme == BUCKET else f"{scheme}{store}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    put_log(log, f"{place}/log")
    run = as_path(f"{place}/run")
    for job in JOBS:
        manifest = job.run(config_of(log, f"{place}/log"), Workdir(run), "fingerprint")
        assert manifest.fingerprint == "fingerprint"
    wanted = local_letters(contents(expected), log, f"{place}/log")
    assert len(wanted) == 3 + 3 + 4 + 4 + (3 + 2) + (12 + 1)
    assert contents(run) == wanted
    assert scratch(run) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def scratch(path: Path) -> list[str]:
    """Objects below a workdir that are no part of a current artifact."""
    kept = {part / "current.txt" for part in parts(path)}
    for part in filter(find_manifest, parts(path)):
        folder = current(part)
        kept |= {folder / name for name in (*read_manifest(part).files, "manifest.json")}
        kept |= {folder / name for name in (*LETTERS, "schema.pbtxt", "statistics.pbtxt")}
        kept |= {file for file in storage.tree(folder) if {folder / "items", folder / "users"} & {*file.parents}}
    return sorted(str(file) for file in storage.tree(path) if file not in kept)


def test_a_run_that_ends_anywhere_is_taken_up_to_the_same_files(
    log: Path, expected: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many changes nothing can be written or cleaned up any more: what a kill leaves in the store."""
    put_log(log, f"{BUCKET}/log")
    run, config = as_path(f"{BUCKET}/run"), config_of(log, f"{BUCKET}/log")
    wanted = local_letters(contents(expected), log, f"{BUCKET}/log")
    ends: list[str] = []
    # How many changes a job takes depends on what the last end has left, and that on the machine.
    for changes in [1, 3, 6, 8, 11, 14, *range(16, 60)]:
        monkeypatch.setattr(strict_store.StrictFileSystem, "changes_left", changes)
        with pytest.raises((ValueError, RuntimeError), match="cannot be reached"):
            for job in (ingest, statistics, groups, windows):
                if find_manifest(parts(run)[JOBS.index(job)]) is None:
                    job.run(config, Workdir(run), "fingerprint")
        monkeypatch.setattr(strict_store.StrictFileSystem, "changes_left", None)
        seen = contents(run)  # reads all of what can be seen
        assert seen == {name: wanted[name] for name in seen}
        ends.append(",".join(sorted({name.split("/")[0] for name in seen})))
        assert scratch(run), "nothing was cut short"
        if len(set(ends)) == 3:
            break
    assert set(ends) == {"", "events", "events,item_statistics"}
    for job in JOBS:
        job.run(config, Workdir(run), "fingerprint")
    assert contents(run) == wanted
    assert scratch(run) == []


def test_a_rerun_replaces_an_artifact_at_once(log: Path, store: Path) -> None:
    """Fewer buckets, and the files of the greater number are gone: who still reads those fails, and is not misled."""
    put_log(log, f"{BUCKET}/log")
    config, run = config_of(log, f"{BUCKET}/log"), Workdir(as_path(f"{BUCKET}/run"))
    ingest.run(config, run, "three")
    before = current(run.events.path)
    tree = config.model_dump(mode="json")
    tree["data"]["num_buckets"] = 2
    ingest.run(Config.model_validate(tree), run, "two")
    assert read_manifest(run.events.path).files == ["events-00000-of-00002.parquet", "events-00001-of-00002.parquet"]
    assert current(run.events.path) != before and storage.tree(before) == []
    assert scratch(run.path) == []


@pytest.mark.parametrize(("folder", "named"), [("", "config.yaml"), ("/20240101", "20240101")])
def test_a_log_that_lies_where_an_artifact_goes_is_not_deleted(folder: str, named: str, log: Path, store: Path) -> None:
    theirs = as_path(f"{BUCKET}/events")
    storage.store_tree(log, as_path(f"{theirs}{folder}"))
    before = storage.tree(theirs)
    with pytest.raises(ValueError, match=rf"strict://bucket/events holds {re.escape(named)}, which is not part"):
        ingest.run(config_of(log, f"{theirs}{folder}"), Workdir(as_path(BUCKET)), "fingerprint")
    assert before and storage.tree(theirs) == before


def test_a_folder_that_a_console_made_is_in_nobodys_way(log: Path, store: Path) -> None:
    """It is an empty object whose name ends in a slash."""
    put_log(log, f"{BUCKET}/log")
    run = Workdir(as_path(f"{BUCKET}/run"))
    for folder in ("run/events/", "run/events/more/"):
        strict_store.StrictFileSystem(None).put(f"{BUCKET}/{folder}", b"")
    ingest.run(config_of(log, f"{BUCKET}/log"), run, "fingerprint")
    assert find_manifest(run.events.path) is not None


def test_a_failed_job_leaves_the_artifact_as_it_was(log: Path, store: Path) -> None:
    put_log(log, f"{BUCKET}/log")
    config, run = config_of(log, f"{BUCKET}/log"), Workdir(as_path(f"{BUCKET}/run"))
    ingest.run(config, run, "good")
    before = {path: path for path in storage.tree(run.path)}
    tree = config.model_dump(mode="json")
    tree["data"]["max_dead_letter_fraction"] = 0.0
    with pytest.raises(ValueError, match=r"max_dead_letter_fraction=0\.0"):
        ingest.run(Config.model_validate(tree), run, "bad")
    assert {path: path for path in storage.tree(run.path)} == before
    assert read_manifest(run.events.path).fingerprint == "good"


def test_a_span_of_a_log_in_a_store_is_what_it_is_on_a_disk(log: Path, store: Path, tmp_path: Path) -> None:
    put_log(log, f"{BUCKET}/log")
    profiles = []
    for number, place in enumerate((str(log), f"{BUCKET}/log")):
        config = load_config(log / "config.yaml", [f"data.events='{place}/log-{{span}}.csv'"])
        [span, *_] = find_spans(config)
        profiles.append(replace(profile_span(config, span, SpanParts(tmp_path / str(number))), items=""))
    assert profiles[0] == profiles[1]


def test_a_span_knows_its_files_as_they_were_found(log: Path, store: Path) -> None:
    """A listing a file would cost minutes; and a run that asked later would say that it has read late data."""
    put_log(log, f"{BUCKET}/log")
    config = load_config(log / "config.yaml", [f"data.events='{BUCKET}/log/log-{{span}}.csv'"])
    [span, *_] = find_spans(config)
    [url] = span.files
    text = storage.read_text(as_path(url))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BeamStore, "match", lambda *_: pytest.fail("listed"))
        before = span.files_json()
        assert before[0][:2] == [url, len(text.encode())]
        storage.write_text(as_path(url), f"{text}\n")
        assert span.files_json() == before
    assert find_spans(config)[0].files_json() != before


def test_an_object_is_found_whatever_characters_its_name_has(store: Path) -> None:
    names = [f"{BUCKET}/log/{name}.csv" for name in ("1", "[1]", "a*", "ab")]
    for name in names:
        storage.write_text(as_path(name), name)
    for name in names:
        assert matching(name) == [name]
        assert identities(name) == {name: (name, len(name), ANY)}
    assert matching(f"{BUCKET}/log/*.csv") == names
    assert matching(f"{BUCKET}/log/[12].csv") == names[:1]


@pytest.fixture
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.05)


def test_a_second_run_at_once_is_refused(store: Path, fast_beats: None) -> None:
    run = Workdir(as_path(f"{BUCKET}/run"))
    refused = pytest.raises(ValueError, match=r"strict://bucket/run is held by process \d+ on")
    with lock.holding(run), refused, lock.holding(run):
        pytest.fail("both hold it")
    with lock.holding(run):  # it was let go
        pass
    assert storage.tree(run.path) == []


def test_the_lock_of_a_dead_run_is_taken_over(store: Path, fast_beats: None) -> None:
    run = Workdir(as_path(f"{BUCKET}/run"))
    storage.write_text(run.lock, '{"owner": "gone", "token": "t", "count": 3}')
    with lock.holding(run):
        assert '"gone"' not in storage.read_text(run.lock)
    assert storage.tree(run.path) == []


def test_the_command_line_from_a_url_to_a_local_run(
    log: Path, expected: Path, store: Path, tmp_path: Path, fast_beats: None
) -> None:
    """`dnc run` there, `dnc fetch`, and `dnc run` here finds all of it up to date."""
    put_log(log, f"{BUCKET}/log")
    (tmp_path / "config.yaml").write_text(dump_config(config_of(log, f"{BUCKET}/log")))
    options = ["-c", str(tmp_path / "config.yaml"), "-w"]
    runner = CliRunner()
    done = runner.invoke(main, ["run", *options, f"{BUCKET}/run", "--to", "windows"], catch_exceptions=False)
    assert done.exit_code == 0 and "dnc fetch strict://bucket/run" in done.output, done.output
    again = runner.invoke(main, ["run", *options, f"{BUCKET}/run"])
    assert again.exit_code == 2 and "stage train needs a local workdir" in again.output
    done = runner.invoke(main, ["fetch", f"{BUCKET}/run", "-w", str(tmp_path / "here")], catch_exceptions=False)
    assert done.exit_code == 0 and "windows: " in done.output
    assert contents(tmp_path / "here") == local_letters(contents(expected), log, f"{BUCKET}/log")
    again = runner.invoke(main, ["run", *options, str(tmp_path / "here"), "--to", "windows"], catch_exceptions=False)
    assert again.output.count("(kept)") == len(JOBS), again.output


def test_every_pipeline_is_one_that_dataflow_takes(
    log: Path, expected: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in what Dataflow would be sent names this machine's files: its workers could not reach them."""
    monkeypatch.setattr(dataflow_dry_run, "translated", [])
    place = f"file://localhost{store}"
    put_log(log, f"{place}/log")
    tree = config_of(log, f"{place}/log").model_dump(mode="json")
    tree["beam"] = {"runner": f"{dataflow_dry_run.__name__}.TranslatingRunner", "options": []}
    for job in JOBS:
        job.run(Config.model_validate(tree), Workdir(as_path(f"{place}/run")), "fingerprint")
    assert contents(as_path(f"{place}/run")) == local_letters(contents(expected), log, f"{place}/log")
    # Ingest, statistics, co-occurrence, two of Lloyd's iterations, assignment, two tables, mined neighbours, windows.
    assert len(dataflow_dry_run.translated) == 10
    for pipeline in dataflow_dry_run.translated:
        images = {image_of(environment) for environment in pipeline.components.environments.values()}
        assert images == {"europe-docker.pkg.dev/my-project/dnc/beam:1"}
        bounds = {pcollection.is_bounded for pcollection in pipeline.components.pcollections.values()}
        assert bounds == {beam_runner_api_pb2.IsBounded.BOUNDED}
        sent = b"".join(map(unpacked, pipeline.components.transforms.values()))
        assert b"RemotePath" in sent
        assert local_files(sent, tmp_path, log) == []
    # A pipeline on a local disk would be found out.
    pickled = zlib.decompress(base64.b64decode(pickler.dumps(AssignBlock(tmp_path, tmp_path), use_zlib=True)))
    assert local_files(pickled, tmp_path, log) == ["PosixPath"]


def local_files(sent: bytes, *folders: Path) -> list[str]:
    """What names a file of this machine: a path, which is pickled in parts, or a text that begins with a folder."""
    found = [name for name in ("PosixPath", "/dnc-") if name.encode() in sent]
    return found + [str(path) for path in folders if re.search(b"(?<!localhost)" + re.escape(bytes(path)), sent)]


def image_of(environment: beam_runner_api_pb2.Environment) -> str:
    return str(beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image)


def unpacked(step: beam_runner_api_pb2.PTransform) -> bytes:
    """What a step's workers are sent; of a ParDo, its DoFn as it was pickled."""
    if step.spec.urn != common_urns.primitives.PAR_DO.urn:
        return step.spec.payload
    pickled = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload).do_fn.payload
    data = base64.b64decode(pickled)
    return zlib.decompress(data) if data[:1] == b"x" else bz2.decompress(data)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://bucket/run", ["gs://bucket/run/.lock", "pip install 'apache-beam[gcp]'", "gcloud auth"]),
        ("s3://bucket/run", ["s3://bucket/run/.lock", "pip install 'apache-beam[aws]'", "AWS_ACCESS_KEY_ID"]),
        ("hdfs://bucket/run", ["hdfs://bucket/run/.lock", "pip install 'apache-beam[hadoop]'", "--hdfs_host"]),
        ("nope://bucket/run", ["nope://bucket/run/.lock", "Beam supports gs, s3, hdfs and azfs"]),
    ],
)
def test_a_store_that_cannot_be_reached_ends_the_run_with_the_remedy(
    url: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here for want of a package, or with it of keys, which look the same from outside."""
    if url.startswith("gs://") and importlib.util.find_spec("google.cloud.storage"):
        pytest.skip("Google's client looks for keys on the network, for minutes")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    done = CliRunner().invoke(main, ["run", "-c", "configs/smoke.yaml", "-w", url, "--to", "ingest"])
    assert done.exit_code == 2 and all(word in done.output for word in words), done.output
    assert "Traceback" not in done.output


def test_dataflow_is_refused_a_workdir_that_its_workers_cannot_reach(log: Path, tmp_path: Path) -> None:
    tree = config_of(log, str(log)).model_dump(mode="json")
    tree["beam"] = {"runner": "DataflowRunner", "options": []}
    with pytest.raises(ValueError, match=r"workers cannot reach .*give a workdir in Cloud Storage"):
        ingest.run(Config.model_validate(tree), Workdir(tmp_path / "run"), "fingerprint")


def test_no_object_is_fetched_to_outside_of_the_folder(store: Path, tmp_path: Path) -> None:
    storage.write_text(as_path(f"{BUCKET}/run/sound.txt"), "sound")
    storage.fetch_tree(as_path(f"{BUCKET}/run"), tmp_path / "run" / "fetched")
    assert (tmp_path / "run" / "fetched" / "sound.txt").read_text() == "sound"
    storage.write_text(as_path(f"{BUCKET}/run/deep/../../../.profile"), "not ours")
    with pytest.raises(StorageError, match=r"deep/\.\./\.\./\.\./\.profile would be written outside .*: remove"):
        storage.fetch_tree(as_path(f"{BUCKET}/run"), tmp_path / "run" / "fetched")
    assert not (tmp_path / ".profile").exists()
