"""The client: typed retrieval requests to `dnc serve` or TF Serving, over gRPC or REST."""

from serving.client.retrieval import Candidates, RetrievalClient
from serving.client.transport import RetrievalError

__all__ = ["Candidates", "RetrievalClient", "RetrievalError"]
