"""One measurement in an interpreter of its own: `python -m bench.child MODULE:FUNCTION '{"bootstrap": ..., ...}'`.

The last line it prints is the result as JSON.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys

import structlog

from pipeline.worker.collector import relax


def main() -> None:
    where, arguments = sys.argv[1], json.loads(sys.argv[2])
    module, _, name = where.partition(":")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    measure = getattr(importlib.import_module(module), name)
    relax()  # as `pipeline run` does; for every side
    result = measure(**arguments)
    print(json.dumps(result), flush=True)
    sys.stderr.flush()
    os._exit(0)  # some peers leave threads behind that do not end


if __name__ == "__main__":
    main()
