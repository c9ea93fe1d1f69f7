"""A runner for tests: each pipeline is translated as Dataflow takes it, and then run here, so that the next can be."""

from __future__ import annotations

import sys
import types
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

OPTIONS = (
    "--project=my-project",
    "--region=europe-west1",
    "--temp_location=gs://bucket/tmp",
    "--staging_location=gs://bucket/staging",
    "--sdk_container_image=europe-docker.pkg.dev/my-project/dnc/beam:1",
    "--max_num_workers=32",
    "--machine_type=n2-standard-4",
    "--disk_size_gb=50",
)
translated: list[beam_runner_api_pb2.Pipeline] = []


class TranslatingRunner(FnApiRunner):
    """`FnApiRunner` that keeps what Dataflow would have been sent in `translated`."""

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> Any:
        result = super().run_pipeline(pipeline, options)
        dataflow = PipelineOptions(["--runner=DataflowRunner", *OPTIONS, "--dry_run=True"])
        _provide_client()
        translated.append(DataflowRunner().run_pipeline(pipeline, dataflow).job.proto_pipeline)
        return result


def _provide_client() -> None:
    """Where Google's packages are missing, a stand-in for the two things that a translation asks of its client."""
    name = "apache_beam.runners.dataflow.internal.apiclient"
    try:
        __import__(name)
    except ImportError:
        client = types.ModuleType(name)
        client.Job = lambda options, proto: types.SimpleNamespace(proto_pipeline=proto)  # type: ignore[attr-defined]
        client.get_container_image_from_options = (  # type: ignore[attr-defined]
            lambda options: options.view_as(WorkerOptions).sdk_container_image
        )
        sys.modules[name] = client
        sys.modules["apache_beam.runners.dataflow.internal"].apiclient = client  # type: ignore[attr-defined]
