"""Who works on a plan alone is a member of its group too, without fetching anything: whoever else starts it, anywhere, sees that."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.model.cluster import Cluster, ConsumerPolicy, FetchFault, TopicPartition
from pipeline.model.errors import ClusterUnavailable, NotAuthorized
from pipeline.replay.joining import CLIENT, refuse_second
from pipeline.replay.options import RunOptions
from pipeline.replay.plan import ReplayPlan

JOIN_S, WAIT_S = 30.0, 0.005


class Presence:
    """`serve` has to be called now and then, or the group takes us for dead."""

    def __init__(self, cluster: Cluster, plan: ReplayPlan, options: RunOptions) -> None:
        self._cluster, self._plan, self._options = cluster, plan, options
        policy = ConsumerPolicy(
            group=options.group,
            client_id=CLIENT,
            protocol=options.protocol,
            session_timeout_ms=options.session_timeout_ms,
        )
        self._member = cluster.consumer(policy)

    def join(self) -> None:
        """Raises `ConfigurationError` when somebody else is at it, `ClusterUnavailable` when the group can't be joined,
        `NotAuthorized` without the right to."""
        bystander = Bystander()
        self._member.subscribe(self._options.results.topic, bystander)
        until = time.monotonic() + JOIN_S
        while not self._member.member_id():
            if time.monotonic() > until:
                raise ClusterUnavailable(f"group {self._options.group} could not be joined: try again")
            self.serve(WAIT_S)
            bystander.check()
        admin = self._cluster.admin()
        try:
            refuse_second(admin, self._options, self._plan, self._member.member_id())
        finally:
            admin.close()

    def serve(self, wait_s: float = 0.0) -> None:
        self._member.poll(1, wait_s)

    def close(self) -> None:
        self._member.close()


class Bystander:
    """A member that takes part for its presence only."""

    def __init__(self) -> None:
        self._denied = ""

    def check(self) -> None:
        """While it joins. Raises `NotAuthorized`: without the right to the group it never would."""
        if self._denied:
            raise NotAuthorized(self._denied)

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing is fetched."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> bool:
        return True

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing was fetched."""

    def fault(self, fault: FetchFault) -> None:
        """Nothing is fetched: a right that is missing is the one to the group."""
        if fault.kind == "not_authorized":
            self._denied = fault.text
