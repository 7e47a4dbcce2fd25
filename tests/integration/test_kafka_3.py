"""The newest Kafka before 4: the adapters' conformance suite with transactions, and whole workers, one of them killed, on a broker of
that line (classic groups)."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from pipeline.kafka import connect
from pipeline.kafka.embedded import BrokerSpec, EmbeddedBroker
from tests.integration.processes import ROOT
from tests.patience import PATIENCE

pytestmark = pytest.mark.first

SUITES = (
    "tests/conformance/test_admin.py",
    "tests/conformance/test_offsets.py",
    "tests/conformance/test_producing.py",
    "tests/conformance/test_records.py",
    "tests/conformance/test_groups.py",
    "tests/conformance/test_transactions.py",
    "tests/integration/test_worker_retries.py",
    "tests/integration/test_worker_crash.py",
)
CHOSEN = (
    "(conformance and kafka and not consumer and not killed and not zombie and not never_lets_go and not instance_id)"
    " or (order_of_a_key and async and classic) or (killed_with_1000_in_flight and classic)"
)
PASSED_AT_LEAST = 58
DEADLINE_S = 240


@pytest.mark.timeout(DEADLINE_S + 60)
def test_the_adapters_transactions_and_a_killed_worker_hold_on_the_newest_kafka_3() -> None:
    with EmbeddedBroker(BrokerSpec(), mirror=os.environ.get("PIPELINE_MAVEN_MIRROR"), lock="kafka-3.9") as broker:
        admin = connect(broker.bootstrap).admin()
        assert admin.broker_version().startswith("3.9")
        admin.close()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *SUITES, "-k", CHOSEN],
            env={**inherited, "PIPELINE_TEST_BROKER": broker.bootstrap},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4_000:]
        found = re.search(r"(\d+) passed", done.stdout)
        assert found is not None, done.stdout[-500:]
        assert int(found[1]) >= PASSED_AT_LEAST
