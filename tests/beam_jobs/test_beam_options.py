"""What of `beam.options` is refused before any work: Beam leaves out what it does not know, with a warning."""

from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import StandardOptions

from beam_jobs.common.beam_run import collect, pipeline_options
from contracts.config import BeamConfig
from contracts.config_io import load_config
from contracts.layout import Workdir
from pipeline.runner import run_stages
from pipeline.stages import STAGES


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--direct_num_worker=4"], "no option --direct_num_worker: did you mean --direct_num_workers?"),
        (["--zzz"], "no option --zzz: check its name"),
        (["--s3_acces_key_id=hidden"], "no option --s3_acces_key_id: did you mean --s3_access_key_id?"),
        (["direct_num_workers=4"], "'direct_num_workers' is not an option: write each as --name=value"),
        (["--direct_num_workers=4", "hidden"], "number 2 is not an option"),
        (["--direct_num_workers=four"], "argument --direct_num_workers: invalid int value: 'four'"),
        (["--s3_session_token"], "argument --s3_session_token: expected one argument"),
        (["--runner=FlinkRunner"], "--runner is not allowed: set beam.runner (now FnApiRunner)"),
    ],
)
def test_an_option_that_beam_would_leave_out_is_refused(
    options: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is, no message shows a value that may be a key to a store."""
    config = load_config(None, ["data.events=nowhere.csv", f"beam.options={options}"])
    with pytest.raises(ValueError, match=r"^beam\.options: ") as error:
        run_stages(STAGES, config, Workdir(tmp_path / "run"))
    assert said in str(error.value)
    assert "hidden" not in str(error.value) + "".join(capfd.readouterr())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("runner", "options"),
    [
        ("FnApiRunner", ["--direct_num_workers", "2", "--s3_disable_ssl", "--experiments=a", "--experiments=b"]),
        ("DataflowRunner", ["--project=p", "--region=r", "--temp_location=gs://b/t", "--sdk_container_image=i"]),
        ("FlinkRunner", ["--checkpointing_interval=60000"]),  # of the job server, not of Beam's Python
        ("FnApiRunner", ["--beam_plugins=mine", "--of_mine=1"]),
    ],
)
def test_options_of_beam_of_a_job_server_and_of_a_plugin_are_taken(runner: str, options: list[str]) -> None:
    taken = pipeline_options(BeamConfig(runner=runner, options=tuple(options)))
    assert taken.get_all_options(retain_unknown_options=True)["runner"] == runner


@pytest.mark.parametrize(
    ("runner", "said"),
    [
        ("FlinkRuner", "did you mean FlinkRunner?"),
        ("dataflow-runner", "did you mean DataflowRunner?"),
        ("Hadoop", "choose one of DataflowRunner, BundleBasedDirectRunner, "),
        ("''", "choose one of"),
        ("apache_beam.runners.direct.NoRunner", "cannot be imported: check its name"),
        ("no_package.NoRunner", "cannot be imported: check its name"),
    ],
)
def test_a_runner_that_beam_does_not_have_is_refused_before_any_work(runner: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n")
    settings = [f"data.events={tmp_path}/log.csv", f"beam.runner={runner}"]
    with pytest.raises(ValueError, match=r"^beam\.runner=.* (is not one of Beam's|cannot be imported)") as error:
        run_stages(STAGES, load_config(None, settings), Workdir(tmp_path / "run"))
    assert said in str(error.value) and not (tmp_path / "run").exists()


IN_FULL = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@pytest.mark.parametrize(
    ("runner", "full_name"),
    [
        *zip(StandardOptions.KNOWN_RUNNER_NAMES, StandardOptions.KNOWN_RUNNER_NAMES, strict=True),
        ("flink", "FlinkRunner"),
        ("SPARKRUNNER", "SparkRunner"),
        (IN_FULL, IN_FULL),
    ],
)
def test_a_runner_is_named_as_beam_lets_it_be_named(runner: str, full_name: str) -> None:
    assert pipeline_options(BeamConfig(runner=runner)).view_as(StandardOptions).runner == full_name


def test_a_runner_whose_module_lacks_a_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_runner_of_ours.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be imported: .*'a_package_that_is_missing': install what it needs"):
        pipeline_options(BeamConfig(runner="a_runner_of_ours.Runner"))


def test_a_runner_named_in_short_has_its_options_and_its_rules(tmp_path: Path) -> None:
    config = BeamConfig(runner="flink", options=("--checkpointing_interval=60000",))
    assert pipeline_options(config).get_all_options(retain_unknown_options=True)["checkpointing_interval"]
    with pytest.raises(ValueError, match="its workers cannot reach"):
        collect(BeamConfig(runner="dataflow"), [], beam.Map(str), tmp_path / "scratch")
