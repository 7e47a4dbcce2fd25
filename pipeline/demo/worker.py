"""One worker process of the demo: `python -m pipeline.demo.worker PARENT BROKER PREFIX GROUP INDEX`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.demo import current
from pipeline.demo.groups import Place, build, ledger_topic, worker_name
from pipeline.model.errors import PipelineError
from pipeline.model.views import Ledger
from pipeline.worker import process

TARGET = "pipeline.demo.current:app"


def main(arguments: Sequence[str]) -> int:
    """Runs until SIGTERM, or until the demo (`PARENT`, a process id) is gone. The exit code is the worker process's."""
    parent, broker, prefix, group, index = arguments
    app = build(Place(broker, prefix), worker_name(group, int(index)))
    try:
        app.codec.prepare(app.topic_name(ledger_topic(group)), (Ledger.record_name,))
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    current.app = app
    return process.run(process.ProcessSpec(TARGET, (group,), int(index), None, parent_pid=int(parent)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
