"""The application of this worker process: `worker.main` puts it here, where the loader of worker processes finds it by name."""

from __future__ import annotations

from pipeline.app import Pipeline

app: Pipeline
