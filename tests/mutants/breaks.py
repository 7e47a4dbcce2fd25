"""Deliberate breaks of the product, as text that is replaced in one of its modules, and the part of the suite that has to notice.

Those of the core alone are in tests/property/history_mutants.py; both lists are run by `make mutants`.
"""

from __future__ import annotations

from dataclasses import dataclass

SIMULATION = "simulation"
HISTORIES = "histories"

REVIEW, REMEDIES = "tests/unit/test_worker_review.py", "tests/unit/test_remedies.py"
CARE, ISOLATED = "tests/unit/test_core_care.py", "tests/unit/test_isolation.py"
SUPERVISOR, STALLS = "tests/unit/test_worker_supervisor.py", "tests/unit/test_worker_stalls.py"
SCHEMAS, AVRO = "tests/unit/test_codec_schema.py", "tests/unit/test_codec_avro.py"
ADAPTER, DAMAGE = "tests/unit/test_kafka_adapter.py", "tests/unit/test_unreadable_batches.py"
RECORDS = "tests/conformance/test_records.py"
LIVES, BOARD = "tests/property/test_board_lives.py", "tests/unit/test_core_jobs_board.py"
SCAN, JOBS = "tests/unit/test_core_store_scan.py", "tests/unit/jobs/test_jobs_on_workers.py"
WRITER, POOL = "tests/unit/jobs/test_store_writer.py", "tests/unit/jobs/test_pool.py"
ASKED = "tests/unit/jobs/test_jobs_from_handlers.py"
SHARING = "tests/unit/test_core_jobs_sharing.py"
OPERATING, MONITOR = "tests/unit/jobs/test_operating_jobs.py", "tests/unit/jobs/test_job_monitor.py"
EVENTS = "tests/unit/jobs/test_job_events.py"
CHOICE, CRON = "tests/unit/test_core_jobs_choice.py", "tests/unit/test_jobs_cron.py"


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
    # what agents publish
    Break("newer-events-pass-a-refusal", "emit.send_route", "or self.reports.refused or", "or", "tests/unit/test_emit_sender.py"),
    Break("one-event-passes-what-waits", "emit.send_route", "if self._must_wait or not self.few_under_way:", "if not self.few_under_way:", "tests/unit/test_emit_sender.py"),
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
    Break("revoke-without-drain", "worker.engine", "return not self.executor.holds(unit) and not self._sender.pending(unit)", "return True", found_by=184),
    Break("drain-forgets-handlers", "worker.runners", "return any(runner.delivery is not None and runner.delivery.unit is unit for runner in self._runners)", "return False", found_by=184),
    Break("idle-runners-wake-a-drain", "worker.runners", "if worked:", "if True:", found_by=516),
    Break("drain-forgets-writes", "worker.engine", "not self.executor.holds(unit) and not self._sender.pending(unit)", "not self.executor.holds(unit)", found_by=416),
    Break("drain-forgets-waits-in-memory", "worker.dispatch", "return waiting + again", "return []", "tests/simulation/test_simulation.py::test_a_stop_forgets_no_attempt"),
    Break("closed-units-stay-queued", "worker.dispatch", "kept = [delivery for delivery in queue if delivery.unit is not unit]", "kept = list(queue)", "tests/unit/test_dispatch.py"),
    # the order of a key
    Break("no-wait", "core.unit", "tail = parking.tail_before(key, identity) if self.waits and key is not None else None", "tail = None"),
    Break("lanes-ahead-of-the-source", "core.lane", "if awaited is not None and first.identity.origin > awaited:", "if False:", "tests/unit/test_core_unit.py", found_by=4778),
    Break("key-never-busy", "core.unit", "                self.waiting.add(delivery)\n                return False", "                pass"),
    Break("free-before-the-dead-letter", "core.unit", "            self._dead_letter(delivery, failure, now_ms)\n            return None\n        target", "            self._dead_letter(delivery, failure, now_ms)\n            return self.free(delivery.key, now_ms)\n        target", found_by=101),
    Break("hand-offs-overtake", "worker.sending", "if stuck is None:\n            self._send(sent, now_ms)\n        else:\n            stuck.append(sent)", "self._send(sent, now_ms)", found_by=52),
    Break("key-free-behind-a-stale-copy", "core.unit", "self.busy.add(key)  # it is not any more", "pass  # it is not any more", "tests/unit/test_core_unit.py", found_by=2234),
    Break("any-hand-off-frees-its-lane", "worker.sending", "if stuck is None or sent not in stuck:", "if stuck is None:", "tests/unit/test_worker_review.py", found_by=1778),
    Break("chunk-runs-past-a-failure", "worker.threads", "stopped.add((delivery.unit, delivery.key))", "pass", found_by=9),
    Break("chunk-forgets-without-order", "worker.threads", "if delivery.key is not None and delivery.unit.by_key:", "if delivery.key is not None:", "tests/simulation/test_simulation.py::test_threads_without_order_run_what_stands_behind_a_failure_of_its_key"),
    Break("chunk-forgets-attempts-at-a-drain", "worker.threads", "unit.hand_back(result.delivery, engine.clock.now_ms)", "pass", "tests/simulation/test_simulation.py::test_a_stop_forgets_no_attempt"),
    Break("whole-batch-fails-all", "core.batching", "if key is None or not unit.chains.more:", "if True:", "tests/unit/test_core_batching.py"),
    # hops and delays
    Break("timers-early", "core.lane", "if first.due_ms > now_ms:", "if first.due_ms > now_ms + 100:"),
    Break("tier-of-the-first-retry", "core.retry", "return ToTier(min(attempt - 1, len(policy.tiers_ms) - 1))", "return ToTier(0)"),
    Break("not-before-ignored", "core.unit", "if delivery.not_before_ms > now_ms:", "if False:", found_by=2),
    Break("resent-with-its-old-due-time", "worker.sending", "due_ms=max(effect.headers.due_ms, lane.last_due_ms)", "due_ms=effect.headers.due_ms", found_by=61),
    Break("one-attempt-more", "core.retry", "attempt >= policy.attempts:", "attempt > policy.attempts:", found_by=2),
    Break("hops-not-counted", "core.copies", "delivery.attempt, delivery.hop + 1, unit.epoch", "delivery.attempt, delivery.hop, unit.epoch"),
    Break("successors-hop-without-end", "core.unit", "if delivery.lane and self.lanes[target].last_due_ms <= now_ms:", "if False:", "tests/unit/test_core_blocked.py"),
    Break("blocked-forgotten-on-release", "core.blocked", "return queue[0] if queue else None", "return None", found_by=9),
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
    Break("once-rebalance-runs-again", "worker.transacting", "isinstance(error, StaleGeneration) and", "False and", "tests/unit/test_exactly_once.py"),
    Break("once-said-again-without-asking", "worker.transacting", "        records, self._held = self._held, []", "        records, self._held = [], []", "tests/unit/test_exactly_once.py"),
    Break("once-said-again-for-somebody-else", "worker.transacting", "        self._repeats = REPEATS_MAX  #", "        pass  #", "tests/unit/test_exactly_once.py"),
    Break("once-undone-and-lost", "worker.transacting", "self._sent or self._waiting or again or", "self._sent or self._waiting or", "tests/unit/test_exactly_once.py"),
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
    Break("held-copy-written-twice", "core.holding", "if before is not None:  # written twice", "if False:  # written twice", "tests/unit/test_core_unit.py", found_by=4084),
    Break("held-mark-not-heard", "core.holding", "if opened is not None and _release_of(opened) == number:", "if False:"),
    # the client
    Break("lanes-go-on-without-a-member", "kafka.consumer", "self._doubtful = self.member_id() != self._committer.member_id", "self._doubtful = False", ADAPTER),
    # clocks, and what is told twice
    Break("own-clock-not-corrected", "worker.parts", "self._source() + self.ahead_ms", "self._source()"),
    Break("clock-spread-ignored", "worker.concluding", "self._clock.read() + self._clock.spread_ms + 1", "self._clock.read() + 1"),
    Break("report-counts-twice", "worker.sending", "if not sent.accepted:", "if True:"),
    # the simulated cluster itself, held to the real one's behaviour
    Break("memory-takes-commits-of-strangers", "memory.commits", "if member_id not in group.members and (member_id or group.members):", "if False:", "tests/conformance/test_offsets.py::test_who_is_no_member_can_not_commit_for_a_group_that_has_some[memory]"),
    Break("memory-two-own-one", "memory.group", "return sorted(member.target - member.owned - held)", "return sorted(member.target - member.owned)", "tests/conformance/test_groups.py::test_revocation_waits_until_the_listener_lets_go[memory]"),
    # the rules (e), (f) and (h): what the worker has to do right around the core
    Break("e-claim-before-lanes", "worker.fetcher", "        for positions in (lanes, source):\n            errors", "        for positions in (source, lanes):\n            errors", f"{REVIEW}::test_a_member_that_was_removed_commits_nothing_of_what_it_had"),
    Break("e-unit-split-over-commits", "worker.committing", "            found |= changed\n", "            found |= dict(list(changed.items())[-1:])\n", "tests/unit/test_committing.py"),
    Break("e-settled-before-the-hand-off-is-written", "core.unit", "self._sending[delivery.identity, delivery.hop + 1] = delivery", "self.lanes[delivery.lane].tracker.settle(delivery.offset)", found_by=29),
    Break("f-lanes-not-drained", "worker.runners", "runner.delivery.unit is unit for runner", "runner.delivery.unit is unit and not runner.delivery.lane for runner", found_by=184),
    Break("f-lanes-not-released", "worker.ownership", "self._committer.positions(unit, self._clock.now_ms, last=True)", "dict(list(self._committer.positions(unit, self._clock.now_ms, last=True).items())[:1])", found_by=281),
    Break("f-lanes-not-assigned", "worker.fetcher", "self._owned[partition] = (source, *lanes, *self._store(partition))", "self._owned[partition] = (source,)"),
    Break("h-commits-what-is-not-ours", "worker.fetcher", "ours, asked = self._ours(), positions", "ours, asked = set(positions), positions", f"{REMEDIES}::test_what_was_lost_is_not_committed_any_more"),
    Break("h-a-stale-member-commits", "worker.tenure", "            if not self.is_of(member_id, [tp])", "            if False", f"{REVIEW}::test_a_member_that_was_removed_commits_nothing_of_what_it_had"),
    # what is paused, and for how long
    Break("resumed-while-parked", "worker.regulating", "stop_lanes = self._lane_gates[unit].update(unit.waiting.of_lanes) or paused", "stop_lanes = paused", f"{REVIEW}::test_a_lane_does_not_pile_up_in_memory_behind_one_slow_key"),
    Break("pause-outlives-its-ownership", "worker.fetcher", "self._paused.difference_update(fresh)", "pass", f"{REVIEW}::test_a_pause_from_before_the_partition_was_lost_does_not_outlive_it"),
    # records that end their process, and those who look after them
    Break("owners-that-died-not-counted", "core.care", "unclean_in_a_row(before) + (0 if ours else 1)", "0", CARE),
    Break("suspects-of-a-key-side-by-side", "core.care", "if may_run(delivery):", "if True:", CARE),
    Break("suspects-run-with-the-others", "core.care", "if self.is_suspect(delivery):", "if False:", CARE),
    Break("handed-over-without-the-count", "core.care", "self.unclean, self._asked, self._handed_over = self.unclean - 1,", "self.unclean, self._asked, self._handed_over = 0,", CARE),
    Break("horizon-before-it-is-stored", "core.care", "horizon, keys = self._horizon[index],", "horizon, keys = self._asked[index],", CARE),
    Break("suspects-side-by-side", "worker.quarantine", "                return False\n            self._alone = None", "                pass\n            self._alone = None", ISOLATED),
    Break("suspects-never-run", "worker.quarantine", "if care.suspects and not engine.paused and not unit.draining and self._run_suspects(unit, care):", "if False:", found_by=29),
    Break("more-let-through-than-can-run", "core.care", "while room > 0 and held and", "while held and", CARE),
    Break("suspects-of-one-partition-first", "worker.quarantine", "self._units[unit] = self._units.pop(unit)", "pass", ISOLATED),
    Break("deaths-of-owners-not-added", "worker.quarantine", "return delivery.unit.unclean - 1", "return 0", ISOLATED),
    Break("death-count-not-incremented", "worker.isolation", "self._deaths.get(delivery, 0) + 1", "self._deaths.get(delivery, 0) or 1", ISOLATED),
    Break("a-killer-is-never-given-up", "worker.isolation", "if deaths >= self._policy.deaths:", "if False:", ISOLATED),
    Break("a-death-is-the-end", "worker.isolation", "            self.run(delivery)\n        return None", "            pass\n        return None", ISOLATED),
    Break("a-late-child-is-not-killed", "worker.children", "self._loop.call_later(DUMP_S, child.kill)", "pass", ISOLATED),
    Break("children-start-without-back-off", "worker.children", "if self._loop.time() >= self._next_start_s:", "if True:", ISOLATED),
    Break("no-back-off-in-the-supervisor", "worker.supervisor", "if now_s >= child.due_s and not self._stopping:", "if not self._stopping:", SUPERVISOR),
    Break("supervisor-gives-up-at-once", "worker.supervisor", "if 0 < self._restarts.limit < child.crashes:", "if child.crashes:", SUPERVISOR),
    Break("a-steady-process-starts-no-new-row", "worker.supervisor", "child.crashes = 1 if steady else child.crashes + 1", "child.crashes += 1", SUPERVISOR),
    Break("a-stuck-worker-is-not-killed", "worker.supervisor", "killed\", pid=process.pid)\n                process.kill()", "killed\", pid=process.pid)\n                return", SUPERVISOR),
    Break("stall-told-again-and-again", "worker.stalls", "if any(stall.delivery is delivery for stall in self.current):", "if False:", STALLS),
    Break("stall-never-told", "worker.stalls", "        self.count += 1\n", "        return\n", STALLS),
    Break("stalls-never-end", "worker.stalls", "if stall.delivery in running)", "if stall.delivery)", STALLS),
    Break("blocked-loop-never-told", "worker.stalls", "and beat_s != told_s:", "and False:", STALLS),
    # findings about Kafka, librdkafka and Avro: docs/findings.md says what each remedy is for
    Break("delayed-end-not-doubted", "kafka.transactions", "self._trouble is None or self._trouble.seen:", "self._trouble is None:", "tests/integration/test_exactly_once.py::test_a_delayed_end_of_one_transaction_never_ends_the_next[True]"),
    Break("left-with-its-transaction-open", "kafka.transactions", "            producer.abort_transaction(abort_s)\n", "            pass\n", "tests/unit/test_kafka_transactions.py::test_a_transaction_has_begun_to_end_before_its_producer_is_destroyed"),
    Break("recursive-schemas-accepted", "codec.schema", "tuple[int, int]:\n        if name in self.open:", "tuple[int, int]:\n        if name in self.open:\n            return 1, 1\n        if False:", f"{SCHEMAS}::test_recursive_schemas_are_refused"),
    Break("arrays-of-nothing-accepted", "codec.schema", "if kind == \"array\" and least == 0:", "if False:", f"{SCHEMAS}::test_arrays_of_nothing_are_refused"),
    Break("doublings-accepted", "codec.schema", "if nodes > NODES_MAX:", "if False:", f"{SCHEMAS}::test_a_schema_of_doublings_is_refused_at_once"),
    Break("counts-not-held-to-the-bytes", "codec.reader", "if items > len(data) - pos:", "if False:", f"{SCHEMAS}::test_a_count_beyond_the_data_is_refused_before_the_first_item"),
    Break("trailing-bytes-accepted", "codec.reader", "if pos != len(data): raise ValueError", "if pos > len(data): raise ValueError", f"{AVRO}::test_trailing_and_missing_bytes_are_undecodable"),
    Break("lengths-may-be-negative", "codec.reader", "if n & 1: raise ValueError('a length is negative')", "pass", f"{SCHEMAS}::test_hostile_bytes_are_an_error_and_no_work"),
    Break("values-end-anywhere", "codec.reader", "if pos != len(data): raise ValueError", "if False: raise ValueError", "tests/property/test_codec_properties.py::test_any_bytes_are_a_value_or_an_error"),
    Break("values-of-any-size", "codec.avro", "if data and len(data) <= self._max_bytes:", "if data:", f"{AVRO}::test_the_size_is_bounded_before_anything_is_read"),
    Break("foreign-ids-accepted", "codec.avro", "if not belongs:", "if False:", f"{AVRO}::test_an_id_of_another_topic_is_foreign"),
    Break("a-dangerous-schema-settles-nothing", "codec.avro", "        except CodecError as error:\n            known.readers[key]", "        except SchemaNotFound as error:\n            known.readers[key]", f"{AVRO}::test_a_dangerous_writers_schema_makes_its_id_undecodable"),
    Break("bad-compression-is-nothing-special", "kafka.errors", "    KafkaError._BAD_COMPRESSION: \"bad_batch\",\n", "", f"{ADAPTER}::test_fetch_faults_and_fatal_errors"),
    Break("unreadable-batch-never-passed-over", "worker.damage", "if suspect.sightings >= SIGHTINGS:", "if False:", f"{DAMAGE}::test_every_record_of_readable_batches_is_read_and_every_other_one_is_in_a_range"),
    Break("unreadable-batch-not-told", "worker.damage", "self._post(Unreadable(tp, Damage(suspect.first, at, suspect.fault.kind, suspect.fault.text)))", "pass", f"{DAMAGE}::test_every_record_of_readable_batches_is_read_and_every_other_one_is_in_a_range"),
    Break("pointer-not-written", "core.unreadable", "unit.effects.append(DeadLetter(delivery, headers, failure))", "pass", DAMAGE),
    Break("client-left-astray", "worker.damage", "self._consumer.seek(tp, self._asked[tp])", "pass", f"{DAMAGE}::test_a_client_that_went_astray_in_a_damaged_batch_is_sent_back"),
    Break("sources-without-a-bound", "topology.rules", "DECOMPRESSED = \"max.decompressed.message.bytes\"", "DECOMPRESSED = \"max.message.bytes\"", "tests/unit/test_topology_plan.py::test_a_source_we_make_is_bound_in_decompressed_size_and_its_lanes_take_a_little_more"),
    Break("branches-without-a-name", "codec.reader", "if name and len(named) >= _TWO_BRANCHES else value", "if False else value", f"{SCHEMAS}::test_unions_of_records_say_which"),
    Break("ids-written-little-endian", "codec.wire", "schema_id.to_bytes(4, \"big\")", "schema_id.to_bytes(4, \"little\")", "tests/unit/test_codec_wire.py::test_bytes_are_those_of_confluents_serializer"),
    Break("breaking-versions-registered", "codec.verdict", "        check_versions(schema, [parse(version.text) for version in registry.versions(subject)], schema.compatibility)\n        ids", "        ids", f"{REMEDIES}::test_a_version_that_breaks_readers_is_refused_whatever_the_registry_accepts"),
    Break("read-by-fastavro", "codec.reader", "    read: Read = scope[\"read\"]\n", "    from io import BytesIO\n    from fastavro import schemaless_reader\n    read: Read = lambda data, pos: schemaless_reader(BytesIO(data[pos:]), schema.node)\n", f"{REMEDIES}::test_a_value_is_read_in_less_time_than_fastavro_takes"),
    Break("readers-made-anew", "codec.avro", "if reader is None or reader.writer.name != writer.name:", "if True:", f"{REMEDIES}::test_one_schema_has_one_reader_whatever_its_ids_and_topics"),
    Break("admin-client-let-go", "kafka.admin", "self._admin = AdminClient(properties)", "type(self)._admin = property(lambda _self: AdminClient(properties))", f"{REMEDIES}::test_an_answer_that_is_waited_for_keeps_its_client"),
    Break("admin-connects-at-once", "kafka.settings", "\"enable.sparse.connections\": False,", "\"enable.sparse.connections\": True,", "tests/fault/test_rows.py::test_a_request_that_waits_for_a_node_that_is_away_takes_no_processor"),
    Break("metadata-refreshed-late", "kafka.settings", "\"topic.metadata.refresh.interval.ms\": 5_000,", "\"topic.metadata.refresh.interval.ms\": 300_000,", f"{REMEDIES}::test_settings_that_measurements_chose"),
    Break("a-member-does-not-leave", "kafka.consumer", "        self._consumer.close()\n        if self._lanes", "        if self._lanes", "tests/conformance/test_groups.py::test_when_a_member_leaves_its_partitions_move_at_once[kafka-classic]"),
    Break("session-not-ours", "kafka.settings", "settings[\"session.timeout.ms\"] = policy.session_timeout_ms", "settings[\"session.timeout.ms\"] = 45_000", f"{ADAPTER}::test_the_protocols_settings_exclude_each_other"),
    Break("broker-session-of-45-seconds", "kafka.embedded.properties", "        \"group.consumer.session.timeout.ms\": session,\n", "", "tests/unit/test_embedded_properties.py::test_group_sessions_are_seconds_with_several_heartbeats_in_one"),
    Break("long-session-not-told", "worker.worker", "if timeout is None or int(timeout) > self._app.settings.session_timeout_s * 1000:", "if False:", f"{REMEDIES}::test_a_broker_whose_sessions_are_long_is_told"),
    Break("pause-kept-over-a-removal", "kafka.consumer", "if was_paused := self._paused & new.keys():", "if was_paused := self._paused - self._paused:", f"{RECORDS}::test_a_pause_survives_a_seek_and_ends_with_a_removal[kafka]"),
    Break("resume-wakes-nobody", "kafka.consumer", "self.seek(tp, position.offset if position.offset >= 0 else self._starts[tp])", "pass", f"{RECORDS}::test_resuming_when_all_was_paused_is_quick[kafka]"),
    Break("consume-waits-to-fill", "kafka.consumer", "self._consumer.consume(max_records - for_lanes, 0)", "self._consumer.consume(max_records - for_lanes, timeout_s)", f"{REMEDIES}::test_only_the_poll_for_the_first_record_waits"),
    Break("a-second-after-a-full-queue", "kafka.settings", "\"fetch.queue.backoff.ms\": 5,", "\"fetch.queue.backoff.ms\": 1_000,", f"{REMEDIES}::test_settings_that_measurements_chose"),
    Break("polls-as-long-as-it-is-asked-to", "worker.fetcher", "timeout_s = min(timeout_s, self._policy.poll_s)", "pass", f"{REMEDIES}::test_no_poll_is_long_however_long_there_is_nothing"),
    Break("commit-text-of-any-length", "kafka.commits", "> METADATA_MAX_CHARACTERS:", "> METADATA_MAX_CHARACTERS << 20:", f"{REMEDIES}::test_what_can_not_be_committed_is_not_sent_with_the_others"),
    Break("commit-text-with-nul", "kafka.commits", "if \"\\0\" in position.metadata:", "if False:", f"{REMEDIES}::test_what_can_not_be_committed_is_not_sent_with_the_others"),
    Break("one-refusal-blurs-all", "kafka.commits", "                answer[tp] = None", "                pass", f"{REMEDIES}::test_what_was_stored_beside_a_refused_partition_is_told_apart"),
    Break("commits-under-the-next-id", "kafka.commits", "if member_id is not None and self._consumer.memberid() != member_id:", "if False:", f"{REMEDIES}::test_a_commit_goes_out_as_the_member_that_asked_for_it_or_not_at_all"),
    Break("commit-requests-of-any-size", "worker.committing", "if size and size + weight > REQUEST_BYTES:", "if False:", f"{REMEDIES}::test_254_full_partitions_go_out_in_several_requests"),
    Break("two-commits-in-flight", "worker.committing", "if now_ms - self._sent_ms < ANSWER_TIMEOUT_MS:", "if False:", "tests/unit/test_committing.py::test_the_next_commit_waits_for_the_answer_to_the_last"),
    Break("commits-never-take-turns", "worker.committing", "self._begin = ordered.index(unit)", "pass", f"{REVIEW}::test_commits_that_do_not_fit_one_request_take_turns"),
    Break("commit-text-runs-full", "worker.regulating", "self._committer.loads.get(unit, 0.0) >= METADATA_FULL", "False", "tests/integration/test_worker_control.py::test_a_partition_whose_commit_metadata_fills_up_takes_no_new_work"),
    Break("one-partition-fills-the-buffer", "worker.engine", "return fetched - self._ownership.received + len(self._dispatch)", "return fetched - self._ownership.received + len(self._dispatch) + sum(u.waiting.count for u in self._ownership.units)", f"{REMEDIES}::test_few_keys_per_partition_all_run_though_each_fetch_brings_one_partition"),
    Break("fetches-of-one-partition", "kafka.settings", "\"fetch.message.max.bytes\": policy.fetch_partition_bytes,", "\"fetch.message.max.bytes\": 16_777_216,", f"{REMEDIES}::test_settings_that_measurements_chose"),
    # jobs: endings and attempts
    Break("jobs-late-endings-count", "core.jobs.board", "if job.version != version or job.state is not RUNNING:", "if job.state is not RUNNING:", BOARD),
    Break("jobs-one-attempt-more", "core.jobs.retrying", "job.attempt >= job.attempts:", "job.attempt > job.attempts:", LIVES),
    Break("jobs-retry-at-once", "core.jobs.retrying", "return now_ms + delay_ms + int(", "return now_ms + int(", LIVES),
    Break("jobs-retry-early", "core.jobs.retrying", "now_ms + delay_ms + int(", "now_ms + delay_ms - int(", LIVES),
    Break("jobs-timers-early", "core.jobs.timers", "heap[0][0] <= now_ms and", "heap[0][0] <= now_ms + 40 and", LIVES),
    Break("jobs-early-after-a-restart", "core.jobs.restoring", "if job.next_ms > now_ms:", "if False:", LIVES),
    Break("jobs-stalls-without-end", "core.jobs.board", "elif job.stalls > job.kind.policy.max_stalled_count:", "elif False:", BOARD),
    Break("jobs-stalls-not-written", "core.jobs.board", "        job.state = QUEUED\n        self.ledger.write(job)\n", "        job.state = QUEUED\n", BOARD),
    Break("jobs-careful-and-yet-not", "core.jobs.board", "                job.gated = True\n                self.unconfirmed += 1\n                self.ledger.write(job)\n                continue", "                self.ledger.write(job)", BOARD),
    Break("jobs-expired-run", "core.jobs.board", "            self.cancel(job, EXPIRED, now_ms)", "            self.time(job)", BOARD),
    Break("jobs-cancel-dies-with-its-owner", "core.jobs.commands", "        board.ledger.write(job)\n        board.ledger.effects.append(Interrupt", "        board.ledger.effects.append(Interrupt", BOARD),
    Break("jobs-cancelled-run-all-the-same", "core.jobs.board", "        if job.laned:\n            self.lanes.remove(job)\n", "", BOARD),
    Break("jobs-commands-count-twice", "core.jobs.commands", "offset > job.offset and _to_job", "_to_job", BOARD),
    Break("jobs-letters-forgotten", "core.jobs.restoring", "if job.letter_due:", "if False:", LIVES),
    # jobs: what is written, and when
    Break("jobs-written-at-the-first-sync", "core.jobs.ledger", "QUEUED_SYNCS, BEGUN_SYNCS = 4, 2", "QUEUED_SYNCS, BEGUN_SYNCS = 4, 1", BOARD),
    Break("jobs-written-twice-for-a-short-wait", "core.jobs.ledger", "QUEUED_SYNCS, BEGUN_SYNCS = 4, 2", "QUEUED_SYNCS, BEGUN_SYNCS = 3, 2", BOARD),
    Break("jobs-never-written-while-they-run", "core.jobs.ledger", "                if job.dirty:\n                    self.write(job)", "                pass", BOARD),
    Break("jobs-later-ones-written-first", "core.jobs.board", "                self.ledger.older_first(job.key)\n", "                pass\n", LIVES),
    Break("jobs-start-unwritten-before-a-later-one", "core.jobs.board", "if key is not None and key in self.keys.later:\n                job.gated", "if False:\n                job.gated", LIVES),
    Break("jobs-schedules-are-nothing-later", "core.jobs.scheduling", "            self._board.keys.scheduled(key)", "            pass", BOARD),
    Break("jobs-forgotten-before-the-inbox-is", "core.jobs.retention", "if job.offset >= committed:", "if False:", BOARD),
    Break("jobs-redriven-count-with-the-others", "core.jobs.retention", "kind.again if job.rounds else kind.good", "kind.good", BOARD),
    Break("jobs-redriven-are-new-jobs", "core.jobs.commands", "board.accept(request, number, now_ms, rounds=1)", "board.accept(request, number, now_ms)", BOARD),
    Break("jobs-rounds-die-with-their-owner", "core.jobs.job", "\"webhook_due\", \"rounds\"),", "\"webhook_due\"),", BOARD),
    Break("jobs-redriven-pass-what-is-forgotten", "worker.jobs.admitting", "            host.board.admit(runs.pop(host, ()), now_ms)\n            if isinstance(read, JobRequest):\n                commands.redriven(host.board, read, number, now_ms)", "            if isinstance(read, JobRequest):\n                runs.setdefault(host, []).append((number, read)) if read.id not in host.board.jobs else commands.redriven(host.board, read, number, now_ms)", JOBS),
    Break("jobs-unconfirmed-take-no-room", "core.jobs.board", "            room -= self.unconfirmed\n", "", BOARD),
    Break("jobs-unknown-types-run", "core.jobs.board", "            if not job.kind.known:\n                job.kind.running -= 1", "            if False:\n                job.kind.running -= 1", BOARD),
    # jobs: order of a key
    Break("jobs-keys-run-together", "core.jobs.board", "if key is None or self.keys.enter(key, job):", "if True:", LIVES),
    Break("jobs-keys-follow-at-once", "core.jobs.board", "            job.state, job.next_ms = JobState.RETRYING, at_ms\n", "            job.state, job.next_ms = JobState.RETRYING, at_ms\n            for each in [job.key and self.keys.leave(job.key, job)]:\n                _ = each and self.lane(each)\n", LIVES),
    Break("jobs-keys-lost-by-those-that-ran", "core.jobs.restoring", "(not job.started_ms, ", "(state in (QUEUED, SCHEDULED), ", LIVES),
    Break("jobs-pass-what-came-due-before", "core.jobs.board", "        self.call_before(request.key, now_ms)\n", "", BOARD),
    Break("jobs-run-now-passes-its-key", "core.jobs.commands", "    job.number, board.number = board.number, board.number + 1", "    pass", BOARD),
    # jobs: once
    Break("jobs-windows-die-with-their-owner", "core.jobs.restoring", "            board.dedup.keep(window)\n\n    def _released", "            pass\n\n    def _released", BOARD),
    Break("jobs-windows-not-written", "core.jobs.ledger", "                self._window(job, request.type, request.dedup_id)", "                pass", LIVES),
    Break("jobs-windows-reach-back", "core.jobs.dedup", "not window.from_ms <= request.created_ms < window.until_ms:", "not request.created_ms < window.until_ms:", LIVES),
    Break("jobs-windows-end-late", "core.jobs.dedup", "<= request.created_ms < window.until_ms", "<= request.created_ms <= window.until_ms", BOARD),
    Break("jobs-windows-kept-after-a-failure", "core.jobs.restoring", "        if self._released(window):\n", "        if False:\n", BOARD),
    Break("jobs-ticks-under-new-names", "core.jobs.scheduling", "tick_id(ticking.schedule.name, tick_ms), tick_ms", "tick_id(ticking.schedule.name, tick_ms) + str(now_ms), tick_ms", LIVES),
    Break("jobs-ticks-not-written", "core.jobs.scheduling", "board.ledger.at_once(board.accept(ticking.request(job_id, at_ms), -1, now_ms))", "board.accept(ticking.request(job_id, at_ms), -1, now_ms)", LIVES),
    Break("jobs-ticks-lost-over-night", "core.jobs.ticks", "and self.schedule.misfire is not Misfire.ALL", "", LIVES),
    Break("jobs-ticks-twice-in-an-hour", "model.cron", "if tick_ms > last_ms:", "if True:", CRON),
    # jobs: who is next
    Break("jobs-lanes-without-weights", "core.jobs.lanes", "credit[best.index] -= weights[lane.index]", "pass", CHOICE),
    Break("jobs-lanes-never-age", "core.jobs.lanes", "weights[index - 1 if index > HIGH and lane.aged(now_ms) else index]", "weights[index]", CHOICE),
    Break("jobs-old-ones-starve", "core.jobs.fairness", "            if self.turns % policy.oldest_every == 0:\n                oldest = line.oldest()", "            if False:\n                oldest = line.oldest()", CHOICE),
    Break("jobs-shares-cost-nothing", "core.jobs.fairness", "            share.deficit -= cost\n", "", CHOICE),
    Break("jobs-limits-do-not-hold", "core.jobs.fairness", "            if line.kind.running >= line.kind.limit:\n                return None\n", "", CHOICE),
    Break("jobs-limits-wake-nobody", "core.jobs.lanes", "                    lane.wake(kind)", "                    pass", CHOICE),
    Break("jobs-limits-wake-one-only-once", "core.jobs.fairness", "                    kind.waiting[self.index][share] = None", "                    pass", CHOICE),
    Break("jobs-woken-ones-lose-their-turn", "core.jobs.fairness", "waiting.move_to_end(share, last=False)", "pass", CHOICE),
    Break("jobs-limits-hold-for-each-board-alone", "core.jobs.sharing", "            kind.limit = kind.running + part\n", "            kind.limit = kind.policy.concurrency\n", SHARING),
    Break("jobs-limits-forget-boards-that-drain", "core.jobs.sharing", "for board in boards if name in board.kinds)", "for board in waiting if name in board.kinds)", SHARING),
    Break("jobs-limits-forget-what-runs-on", "core.jobs.sharing", " - elsewhere.get(name, 0)", "", SHARING),
    Break("jobs-places-go-to-the-first-board", "core.jobs.sharing", "            waiting.sort(key=self._served.__getitem__)\n", "", SHARING),
    Break("jobs-places-of-types-go-to-the-first-board", "core.jobs.sharing", "        kinds.sort(key=lambda kind: kind.served)\n", "", SHARING),
    Break("jobs-places-of-careful-boards-not-counted", "core.jobs.sharing", " + sum(board.unconfirmed for board in boards)", "", SHARING),
    # jobs on workers
    Break("store-believes-strangers-past-the-fence", "core.store_scan", "(offset >= self._owner_fence and epoch < self._owner)", "False", SCAN),
    Break("store-believes-lower-epochs", "core.store_scan", "epoch < self.epoch or ", "", SCAN),
    Break("store-is-read-past-the-fence", "core.store_scan", "offset < self.at or offset >= self.fence", "offset < self.at", SCAN),
    Break("store-epochs-start-over", "worker.ownership", "max(opening.rebuild.epoch, opening.store.epoch + 1)", "opening.rebuild.epoch", JOBS),
    Break("store-strangers-stay", "worker.jobs.boards", "        write_again(self.board, self.scan.strangers)\n", "", JOBS),
    Break("store-unreadable-entries-stop-it", "core.jobs.restoring", "            if self._unreadable is None:\n                raise\n", "            raise\n", JOBS),
    Break("jobs-boards-are-never-careful", "worker.jobs.boards", "unit.unclean >= WATCHED", "False", JOBS),
    Break("jobs-inbox-settled-when-admitted", "worker.jobs.admitting", "runs.setdefault(host, []).append((number, read))", "self._engine.done(delivery) or runs.setdefault(host, []).append((number, read))", JOBS),
    Break("jobs-interrupts-get-lost", "worker.jobs.hosting", "self._runs.interrupt(run, \"cancelled\")", "pass", JOBS),
    Break("jobs-drained-before-they-are-written", "worker.jobs.hosting", "host.endings or len(host.writer)", "False", JOBS),
    Break("jobs-writes-pass-what-failed", "worker.jobs.writing", "self._unsent or self._held", "self._held", WRITER),
    Break("jobs-schedules-pass-their-ticks", "worker.jobs.writing", "while held and not (self._under_way and held[0].alone):", "while held:", WRITER),
    Break("jobs-windows-lost-with-a-write", "core.jobs.restoring", "        for window in begun:\n", "        for window in ():\n", BOARD),
    Break("jobs-writes-done-out-of-order", "worker.jobs.writing", "while items and items[0].acknowledged:\n            done.append(items.popleft().what)", "for item in [each for each in items if each.acknowledged]:\n            items.remove(item)\n            done.append(item.what)", WRITER),
    Break("jobs-answers-heard-twice", "worker.jobs.writing", "        batch.heard = now\n", "", WRITER),
    Break("jobs-writes-resent-as-they-were", "worker.jobs.writing", "        _newest(again)\n", "", WRITER),
    Break("jobs-outlive-their-loop", "worker.jobs.pool", "self._abandoned or task.cancelling() > bool(run.ended_by)", "self._abandoned", POOL),
    Break("jobs-see-the-cancellation-before", "worker.jobs.pool", "                forget_cancellation(task)\n", "", POOL),
    Break("jobs-see-the-variables-before", "worker.jobs.pool", "if contextvars.copy_context() != clean:", "if False:", POOL),
    Break("jobs-wait-for-one-that-suspends", "worker.jobs.pool", "if waiting and not self._baton:", "if False:", POOL),
    Break("jobs-stopped-before-their-first-turn", "worker.jobs.running", "self.stopped(run) if run.ended_by else await self._execute(run)", "await self._execute(run)", "tests/unit/jobs/test_job_runs.py"),
    Break("jobs-paused-queues-spin", "worker.jobs.admitting", "if taken and (", "if (", JOBS),
    Break("jobs-retries-early-for-another-clock", "core.jobs.board", "now_ms + self.spread_ms", "now_ms", BOARD),
    Break("jobs-answers-without-their-first", "core.jobs.board", "            self.ledger.at_once(job)\n", "            pass\n", BOARD),
    Break("jobs-callers-believe-strangers", "jobs.following", "if epoch < epochs.get(tp, 0):", "if False:", "tests/unit/jobs/test_following_owners.py"),
    # the same and others, by histories of whole workers
    Break("fleet-jobs-without-dedup", "core.jobs.board", "elif request.dedup_id is None or not self.duplicate(request, offset, now_ms):", "else:", found_by=27),
    Break("fleet-jobs-settled-unwritten", "worker.jobs.writing", "while items and items[0].acknowledged:", "while items:", found_by=7),
    Break("fleet-jobs-timers-early", "core.jobs.timers", "heap[0][0] <= now_ms and", "heap[0][0] <= now_ms + 40 and", found_by=7),
    Break("fleet-jobs-strangers-believed", "core.store_scan", "if epoch < self.epoch or (offset >= self._owner_fence and epoch < self._owner):", "if False:", found_by=199),
    Break("fleet-jobs-ticks-twice", "core.jobs.scheduling", "if job_id not in board.jobs:", "if True:", found_by=423),
    Break("fleet-jobs-ticks-lost", "core.jobs.scheduling", "board.ledger.at_once(board.accept(ticking.request(job_id, at_ms), -1, now_ms))", "pass", found_by=11),
    Break("fleet-jobs-keys-let-go-at-a-retry", "core.jobs.board", "            job.state, job.next_ms = JobState.RETRYING, at_ms\n", "            job.state, job.next_ms = JobState.RETRYING, at_ms\n            if job.key is not None and (following := self.keys.leave(job.key, job)) is not None:\n                self.lane(following)\n", found_by=11),
    Break("fleet-jobs-seen-requests-run-again", "core.jobs.board", "            if known is not None:\n", "            if False and known is not None:\n", found_by=43),
    Break("fleet-jobs-drained-while-they-run", "worker.jobs.hosting", "any(run.host is host for run in self._runs.running)", "False", found_by=495),
    Break("fleet-jobs-writes-resent-as-they-were", "worker.jobs.writing", "        _newest(again)\n", "", found_by=147),
    Break("fleet-jobs-writes-answered-twice", "memory.producer", "if not told:", "if True:", found_by=39),
    Break("fleet-jobs-cancels-not-minded", "core.jobs.commands", "        board.cancel(job, reason, now_ms)\n", "        pass\n", found_by=51),
    Break("fleet-jobs-old-ones-of-a-lane-last", "core.jobs.lanes", "credit[lane.index] + weights[lane.index])", "-lane.index)", found_by=1523),
    Break("jobs-writes-resent-too-early", "worker.jobs.writing", "self._under_way or now_ms < self._again_ms", "now_ms < self._again_ms", WRITER),
    Break("jobs-results-of-earlier-owners-get-lost", "jobs.following", "                self.epochs.pop(tp, None)  # what comes is older than what came\n", "                pass\n", "tests/unit/jobs/test_following.py"),
    Break("jobs-callers-read-all-partitions", "jobs.following", "                del self._from[tp], self._at[tp]\n", "                pass\n", "tests/unit/jobs/test_following.py"),
    Break("jobs-stores-restored-in-one-go", "worker.jobs.boards", "                return False\n", "                pass\n", JOBS),
    Break("jobs-that-came-early-get-lost", "worker.jobs.admitting", "                    self._early.setdefault(delivery.unit, []).append(delivery)", "                    pass", JOBS),
    Break("jobs-let-go-are-stalls", "worker.jobs.hosting", "return unit in self._given_up or not self.holds(unit)", "return True", JOBS),
    Break("jobs-asked-for-are-not-waited-for", "worker.jobs.hosting", "            self._hand_ons.start(run, ending, self._engine.clock.now_ms)\n", "            self._hand_ons.start(run, ending, self._engine.clock.now_ms)\n            host.endings.append((run.job, run.version, ending))\n", ASKED),
    Break("jobs-asked-for-by-those-that-failed", "worker.jobs.hosting", "run.asked and isinstance(ending, Completed)", "run.asked", ASKED),
    Break("jobs-asked-for-under-new-names", "model.outbox", "f\"{parent}#{number}\"", "f\"{parent}#{number}#{id(object())}#{__import__('os').urandom(8)}\"", ASKED),
    Break("jobs-asked-for-at-once", "model.outbox", "outbox is None or outbox.cluster != cluster", "True or outbox is None", ASKED),
    Break("jobs-asked-for-too-late-get-lost", "worker.jobs.context", "        if self.ended:\n            return None\n", "", ASKED),
    Break("jobs-asked-for-are-sent-once", "worker.jobs.handing_on", "        self._again.append((now_ms + RESEND_MS", "        _ = ((now_ms + RESEND_MS", ASKED),
    Break("strangers-stay-while-the-owner-works", "worker.jobs.strangers", "            write_again(host.board, keys)\n", "", JOBS),
    Break("strangers-before-the-first-entry-unseen", "worker.jobs.writing", "self.seen = end", "self.seen = 1 << 60", JOBS),
    Break("strangers-behind-the-last-entry-unseen", "worker.jobs.strangers", "elif host in known and now_ms - at_ms >= LOOK_MS:", "elif False:", JOBS),
    Break("strangers-are-all-the-others", "core.store_scan", "if found != epoch and key", "if key", JOBS),
    Break("strangers-found-over-and-over", "worker.jobs.strangers", "                host.writer.seen = max(host.writer.seen, at)", "                pass", JOBS),
    # operating jobs
    Break("jobs-index-believes-strangers", "jobs.index", "epoch >= epochs[place]", "True", MONITOR),
    Break("jobs-index-keeps-the-forgotten", "jobs.index", "            self._jobs[name] = None\n", "            pass\n", MONITOR),
    Break("jobs-index-of-another-store", "jobs.index", "elif mark != mark_of(message):", "elif False:", MONITOR),
    Break("jobs-endings-counted-twice", "jobs.counting", "before[:2] == (row.state, row.version)", "False", MONITOR),
    Break("jobs-stalls-not-counted", "jobs.counting", "if row.stalls > (0 if before is None else before[2]):", "if False:", MONITOR),
    Break("jobs-rates-of-all-times", "jobs.monitor", "WHERE minute >= ?", "WHERE ? > 0", MONITOR),
    Break("jobs-health-without-workers", "jobs.health", "if not group.members:", "if False:", MONITOR),
    Break("jobs-metrics-go-back", "worker.jobs.hosting", "        self.tally.dropped(host.board)\n", "", MONITOR),
    Break("jobs-commands-go-by-id", "jobs.desk", "[(key.encode(), self._inbox.command(command))], partition", "[(key.encode(), self._inbox.command(command))], -1", OPERATING),
    Break("jobs-retry-what-completed", "jobs.desk", "if row.state not in {state.value for state in states}:", "if False:", OPERATING),
    Break("jobs-handles-keep-the-round-before", "jobs.desk", "        self._parts.client.again(self.topics.inbox, job_id, row.version)\n", "", OPERATING),
    Break("schedules-stay-where-they-were", "jobs.desk", "                await self._command(DropSchedule(schedule.name), partition)\n", "                pass\n", OPERATING),
    Break("schedules-just-put-are-unknown", "jobs.desk", "partitions.add(self._put[name])", "pass", OPERATING),
    Break("schedules-differ-each-time", "jobs.scheduling", "JobOptions(**options), 0, name)", "JobOptions(**options), __import__('time').time_ns(), name)", OPERATING),
    Break("job-events-told-twice", "jobs.events", "state = JobState.QUEUED if record.letter_due else record.state", "state = record.state", EVENTS),
    Break("job-events-of-strangers", "jobs.events", "if epoch < self._epochs.get(partition, 0):", "if False:", EVENTS),
    Break("job-events-go-on-too-early", "jobs.events", "after[place.partition] + 1", "after[place.partition]", EVENTS),
)  # fmt: skip
