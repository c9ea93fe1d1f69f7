"""Deployment of servables on TF Serving: its configs, images and manifests; docs/serving.md says how."""
