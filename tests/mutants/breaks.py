"""Deliberate breaks of the product, as text that is replaced in one of its modules, and the part of the suite that has to notice.

Those of the core alone are in tests/property/history_mutants.py; both lists are run by `make mutants`.
"""

from __future__ import annotations

from dataclasses import dataclass

SIMULATION = "simulation"
HISTORIES = "histories"


@dataclass(frozen=True, slots=True)
class Break:
    """`module` without `pipeline.`; `old` occurs in it exactly once. `caught_by`: SIMULATION, HISTORIES, or tests as pytest names them.

    `found_by`: the seed of a history that has found it, tried before all others.
    """

    name: str
    module: str
    old: str
    new: str
    caught_by: str = SIMULATION
    found_by: int = 0


BREAKS = (
    # what may be committed, and when
    Break("commit-before-settle", "core.offsets", "opened = tuple(self.open)", "opened = ()"),
    Break("commit-refused-counts-as-stored", "worker.committing", "if error is None and tp in errors:", "if True:", "tests/unit/test_committing.py"),
    Break("commit-refused-is-forgotten", "worker.committing", "self._refused[tp] = position", "pass", "tests/unit/test_committing.py"),
    Break("commit-never-doubted", "worker.committing", "if known.doubted_ms:", "if False:", "tests/unit/test_committing.py"),
    Break("commit-of-the-unit-before", "worker.committing", "self._lanes.pop(tp, None)", "pass", found_by=14),
    Break("no-last-commit", "worker.tenure", "left = dict(positions)", "left = {}"),
    Break("commits-as-whoever-we-are-now", "worker.tenure", "return bool(member_id) and all(self._members.get(tp.partition) == member_id for tp in partitions)", "return True", "tests/unit/test_worker_review.py"),
    Break("commits-without-an-id", "worker.tenure", "return bool(member_id) and all(", "return not member_id or all(", "tests/unit/test_worker_review.py"),
    Break("claim-not-awaited", "worker.fetcher", "if bad is None:", "if True:", found_by=29),
    Break("claim-does-not-seek", "worker.fetcher", "self._consumer.seek(tp, offset)", "pass"),
    Break("offsets-of-idle-lanes-expire", "worker.committing", "again = now_ms - known.at_ms > RECOMMIT_MS", "again = False", "tests/unit/test_committing.py"),
    # owners
    Break("no-epoch-check", "core.unit", "if offset >= lane.fence and headers.epoch < self.epoch and headers.hop:", "if False:", found_by=33),
    Break("no-fence-at-rebuild", "core.rebuild", "if offset >= scan.previous_fence and copy.epoch < self.source.epoch and copy.hop:", "if False:", found_by=33),
    Break("epochs-start-over", "core.rebuild", "self.epoch = max(self.epoch, copy.epoch + 1)", "pass", "tests/unit/test_roll_back.py"),
    Break("lost-units-work-on", "worker.ownership", "                continue\n            handle = self._draining.pop(unit, None)", "                continue\n            continue\n            handle = self._draining.pop(unit, None)", found_by=14),
    Break("revoke-without-drain", "worker.engine", "return not self.executor.holds(unit) and not self._sender.pending(unit)", "return True", found_by=31),
    Break("drain-forgets-handlers", "worker.runners", "return any(runner.delivery is not None and runner.delivery.unit is unit for runner in self._runners)", "return False", found_by=31),
    Break("idle-runners-wake-a-drain", "worker.runners", "if worked:", "if True:", found_by=516),
    Break("drain-forgets-writes", "worker.engine", "not self.executor.holds(unit) and not self._sender.pending(unit)", "not self.executor.holds(unit)", found_by=31),
    Break("drain-forgets-waits-in-memory", "worker.dispatch", "return waiting + again", "return []", "tests/simulation/test_simulation.py::test_a_stop_forgets_no_attempt"),
    Break("closed-units-stay-queued", "worker.dispatch", "kept = [delivery for delivery in queue if delivery.unit is not unit]", "kept = list(queue)", "tests/unit/test_dispatch.py"),
    # the order of a key
    Break("no-wait", "core.unit", "tail = parking.tail_before(key, identity) if self.waits and key is not None else None", "tail = None"),
    Break("key-never-busy", "core.unit", "                self.waiting.add(delivery)\n                return False", "                pass"),
    Break("free-before-the-dead-letter", "core.unit", "            self._dead_letter(delivery, failure, now_ms)\n            return None\n        target", "            self._dead_letter(delivery, failure, now_ms)\n            return self.free(delivery.key, now_ms)\n        target", found_by=101),
    Break("hand-offs-overtake", "worker.sending", "if stuck is None:\n            self._send(sent, now_ms)\n        else:\n            stuck.append(sent)", "self._send(sent, now_ms)", found_by=52),
    Break("key-free-behind-a-stale-copy", "core.unit", "self.busy.add(key)  # it is not any more", "pass  # it is not any more", "tests/unit/test_core_unit.py", found_by=2234),
    Break("any-hand-off-frees-its-lane", "worker.sending", "if stuck is None or sent not in stuck:", "if stuck is None:", "tests/unit/test_worker_review.py", found_by=1778),
    Break("chunk-runs-past-a-failure", "worker.threads", "stopped.add((delivery.unit, delivery.key))", "pass", found_by=9),
    Break("chunk-forgets-without-order", "worker.threads", "if delivery.key is not None and delivery.unit.by_key:", "if delivery.key is not None:", "tests/simulation/test_simulation.py::test_threads_without_order_run_what_stands_behind_a_failure_of_its_key"),
    Break("chunk-forgets-attempts-at-a-drain", "worker.threads", "unit.hand_back(result.delivery, engine.clock.now_ms)", "pass", "tests/simulation/test_simulation.py::test_a_stop_forgets_no_attempt"),
    Break("whole-batch-fails-all", "core.batching", "if key is None or not unit.chains:", "if True:", "tests/unit/test_core_batching.py"),
    # hops and delays
    Break("timers-early", "core.unit", "if due > now_ms:", "if due > now_ms + 100:"),
    Break("tier-of-the-first-retry", "core.retry", "return ToTier(min(attempt - 1, len(policy.tiers_ms) - 1))", "return ToTier(0)"),
    Break("not-before-ignored", "core.unit", "if delivery.not_before_ms > now_ms:", "if False:", found_by=2),
    Break("resent-with-its-old-due-time", "worker.sending", "due_ms=max(effect.headers.due_ms, lane.last_due_ms)", "due_ms=effect.headers.due_ms", found_by=61),
    Break("one-attempt-more", "core.retry", "attempt >= policy.attempts:", "attempt > policy.attempts:", found_by=2),
    Break("hops-not-counted", "core.copies", "delivery.attempt, delivery.hop + 1, unit.epoch", "delivery.attempt, delivery.hop, unit.epoch"),
    Break("successors-hop-without-end", "core.unit", "if delivery.lane and self.lanes[target].last_due_ms <= now_ms:", "if False:", "tests/unit/test_core_blocked.py"),
    Break("blocked-forgotten-on-release", "core.blocked", "return queue[0] if queue else None", "return None", found_by=7),
    # writes
    Break("dead-letter-failure-swallowed", "worker.sending", "if error is not None:\n            self._later(sent, error, now_ms)\n            return None", "if error is not None and not isinstance(sent.what, DeadLetter):\n            self._later(sent, error, now_ms)\n            return None", found_by=82),
    Break("lost-answer-counts-as-written", "worker.sending", "        if error is not None:\n            self._later(sent, error, now_ms)\n            return None\n        if sent.failed", "        if sent.failed", found_by=14),
    Break("refused-writes-never-sent-again", "worker.sending", "if at > now_ms:", "if True:"),
    Break("first-output-settles", "worker.sending", "waiting = Outputs(delivery, len(records), warning)", "waiting = Outputs(delivery, 1, warning)"),
    # operators and bounds
    Break("work-while-paused", "worker.dispatch", "        if self.paused:\n            return None\n        while", "        while", found_by=70),
    Break("starts-before-switches-are-read", "worker.switching", "self._dispatch.paused = paused or self._stalled or not self._parts.switches.read", "self._dispatch.paused = paused or self._stalled", "tests/simulation/test_simulation.py::test_a_worker_that_starts_takes_nothing_before_it_knows_what_is_paused"),
    Break("skip-not-heard", "core.unit", "if self.skipped and delivery.identity in self.skipped:", "if False:", "tests/unit/test_core_unit.py tests/property/test_parking.py"),
    Break("lanes-never-resumed", "worker.fetcher", "self._consumer.resume([tp for tp in wanted if tp in self._added])", "pass"),
    # exactly once
    Break("once-writes-outside", "worker.engine", "Sender(transactions or parts.producer,", "Sender(parts.producer,"),
    Break("once-positions-outside", "worker.transacting", "partial(self._producer.commit, self._positions, membership)", "partial(self._producer.commit, {}, membership)"),
    Break("once-doubt-keeps-the-producer", "worker.transacting", "        self._stall_if(False)\n        self._abort()", "        self._stall_if(False)\n        self._aborted()", found_by=796),
    Break("once-doubt-keeps-what-waits", "worker.transacting", "        self._waiting.clear()", "        pass"),
    Break("once-refused-commit-forgotten", "worker.transacting", "            self.doubt(error)\n            return\n        if str(error)", "            self._begin()\n            return\n        if str(error)"),
    Break("once-lost-is-committed", "worker.engine", "            self.transactions.lost()", "            pass", "tests/unit/test_exactly_once.py::test_a_lost_partition_takes_its_records_out_of_the_transaction"),
    Break("once-let-go-before-the-commit", "worker.transacting", "if not self._committer.positions(unit, self._clock.now_ms):", "if True:"),
    Break("once-closed-while-records-wait", "worker.transacting", "if self._waiting or self._looked_at != self._taken:", "if False:"),
    # held keys
    Break("held-successors-run", "core.unit", "if self.holds.heads and self.waits else None", "if False else None"),
    Break("held-forgotten-at-rebuild", "core.rebuild", "if copy.hold or identity in self.held:", "if False:"),
    Break("held-key-free-at-once", "core.holding", "        if delivery in self.giving_up:\n            self.hold(delivery, now_ms)", "        if delivery in self.giving_up:\n            return False"),
    Break("held-mark-not-heard", "core.holding", "if opened is not None and _release_of(opened) == number:", "if False:"),
    # clocks, and what is told twice
    Break("own-clock-not-corrected", "worker.parts", "self._source() + self.ahead_ms", "self._source()"),
    Break("clock-spread-ignored", "worker.concluding", "self._clock.read() + self._clock.spread_ms + 1", "self._clock.read() + 1"),
    Break("report-counts-twice", "worker.sending", "if not sent.accepted:", "if True:"),
    # the simulated cluster itself, held to the real one's behaviour
    Break("memory-takes-commits-of-strangers", "memory.commits", "if member_id not in group.members and (member_id or group.members):", "if False:", "tests/conformance/test_offsets.py::test_who_is_no_member_can_not_commit_for_a_group_that_has_some[memory]"),
    Break("memory-two-own-one", "memory.group", "return sorted(member.target - member.owned - held)", "return sorted(member.target - member.owned)", "tests/conformance/test_groups.py::test_revocation_waits_until_the_listener_lets_go[memory]"),
)  # fmt: skip
