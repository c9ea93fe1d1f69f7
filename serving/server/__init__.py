"""A server of TF Serving's APIs, gRPC and REST, for development, tests and small deployments."""
