"""What must hold in every history, checked from the facts alone: what is in the topics, what was committed, what handlers did.

It knows the product only by what is written: header `pl.d`, the names of lanes and the text of commits are read by code of its
own, so that an error in the product's is not shared. The letters I1-I8 are the promises of docs/guide/testing.md.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial

from tests.simulation.exactly import ExactlyOnce
from tests.simulation.facts import Began, Decided, Ended, Fact, Happened, Landed, Place, Seen, Stored
from tests.simulation.held import Held

PAUSE_GRACE_MS = 1_500
"""How long after a pause was written a worker may not have read it yet."""
NEVER = 1 << 30


@dataclass(frozen=True, slots=True)
class Terms:
    """What was promised. `calm`: nobody died and no answer was lost, so nothing may be repeated. `moved`: an operator put the
    group back. `whole`: batches fail as one, so how often a record fails depends on its neighbours."""

    topic: str
    group: str
    out: str
    attempts: int
    order: str = "key"
    calm: bool = False
    moved: bool = False
    whole: bool = False
    exactly_once: bool = False
    hold: bool = False

    @property
    def lanes(self) -> str:
        return f"{self.topic}.{self.group}."

    def lane_topic(self, fence: str) -> str:
        return f"{self.lanes}replay" if fence == "replay" else f"{self.lanes}retry.{fence}"


@dataclass(frozen=True, slots=True)
class Progress:
    """A committed position, read: all below `end` that is not open is settled."""

    offset: int
    end: int
    open: frozenset[int] = frozenset()
    epoch: int = 0
    fences: tuple[tuple[str, int], ...] = ()

    def settled(self, offset: int) -> bool:
        return offset < self.end and offset not in self.open

    def __str__(self) -> str:
        head = f"epoch {self.epoch} fences {dict(self.fences)} " if self.epoch else ""
        return f"{head}below {self.offset}, done to {self.end} but {sorted(self.open) or 'nothing'}"


def _numbers(raw: bytes) -> list[int]:
    found, number, shift = [], 0, 0
    for byte in raw:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(number)
            number = shift = 0
    return found


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    end = at
    while raw[end] > 127:
        end += 1
    return _numbers(raw[at : end + 1])[0], end + 1


def read_progress(offset: int, metadata: str) -> Progress:
    """`pl1:` + base64url(epoch, fences, kind, payload): see "Commit metadata" in docs/design.md."""
    if not metadata.startswith("pl1:"):
        return Progress(offset, offset)
    text = metadata[4:]
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    epoch, at = _varint(raw, 0)
    count, at = _varint(raw, at)
    fences = []
    for _ in range(count):
        length, at = _varint(raw, at)
        name = raw[at : at + length].decode()
        end, at = _varint(raw, at + length)
        fences.append((name, end))
    kind, at = _varint(raw, at)
    if kind == 0:
        span, _ = _varint(raw, at)
        return Progress(offset, offset + span, frozenset(), epoch, tuple(fences))
    if kind == 1:
        bits = raw[at:]
        opened = {offset + i for i in range(8 * len(bits)) if bits[i // 8] >> (i % 8) & 1}
        return Progress(offset, offset + 8 * len(bits), frozenset(opened), epoch, tuple(fences))
    position, opened = offset, set()
    for index, run in enumerate(_numbers(raw[at:])):
        if index % 2 == 0:
            opened.update(range(position, position + run))
        position += run
    return Progress(offset, position, frozenset(opened), epoch, tuple(fences))


Identity = tuple[int, int, str]
"""Source partition, origin offset, replay id."""


@dataclass(slots=True)
class Copy:
    """One record in the source or in a lane. `attempt`: executions before it was written."""

    place: Place
    attempt: int = 0
    hop: int = 0
    epoch: int = 0
    due_ms: int = 0
    hold: str = ""


@dataclass(slots=True)
class Story:
    """What became of one record."""

    key: bytes | None
    copies: list[Copy] = field(default_factory=list)
    executions: Counter[int] = field(default_factory=Counter)
    """Attempt -> how often it ran."""
    failed: set[int] = field(default_factory=set)
    rejected: bool = False
    not_before: dict[int, int] = field(default_factory=dict)
    wanted: int | None = None
    outputs: set[int] = field(default_factory=set)
    outcomes: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    """Attempt -> epoch -> how it ended there."""
    dead: int = 0
    given_up: set[int] = field(default_factory=set)
    """After which attempts, as its dead letters say."""
    behind: int = 0
    """So many of its dead letters only follow a held record."""
    skipped: bool = False

    @property
    def done(self) -> bool:
        """It succeeded, and its outputs are written."""
        return self.wanted is not None and len(self.outputs) >= self.wanted

    @property
    def ended(self) -> bool:
        return self.done or self.dead > 0

    @property
    def ended_otherwise(self) -> bool:
        """What it was given up for was repeated in another life, and came out differently: an event loop that stood still had let its
        time run out, or did then. Such a dead letter is work that was in flight when its owner died."""
        ways = [set(self.outcomes[attempt].values()) for attempt in self.given_up]
        return all(len(each) > 1 and each & {"ok", "rejected"} for each in ways)


@dataclass(slots=True)
class Life:
    """One owner of a partition. `floor`: record -> an attempt up to this one was durably over when it began."""

    floor: dict[Identity, int]
    ran: Counter[tuple[Identity, int]] = field(default_factory=Counter)
    running: dict[int, tuple[Identity, bytes | None]] = field(default_factory=dict)


class Checker:
    """Feed it every fact in order, then ask for `problems`; `seen` counts the situations that were met."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.problems: list[str] = []
        self.seen: Counter[str] = Counter()
        self.stories: dict[Identity, Story] = {}
        self._at: dict[Place, Identity] = {}
        self._copy: dict[Place, Copy] = {}
        self._landed: dict[tuple[str, int], list[int]] = defaultdict(list)
        self._positions: dict[tuple[str, int], Progress] = {}
        self._by_key: dict[tuple[int, bytes | None], list[int]] = defaultdict(list)
        self._first_open: Counter[tuple[int, bytes | None]] = Counter()
        self._released: dict[tuple[int, bytes | None], int] = {}
        self._epoch: Counter[int] = Counter()
        self._fences: dict[int, list[tuple[int, dict[str, int]]]] = defaultdict(list)
        self._put_back: set[int] = set()
        self._lives: dict[tuple[int, int], Life] = {}
        self._executions: dict[int, Began] = {}
        self._due: dict[tuple[str, int, int], int] = {}
        self._paused_ms = NEVER << 20
        self._set_back_ms = 0
        self.repeats = 0
        self._exactly = ExactlyOnce(self._wrong, self.seen) if terms.exactly_once else None
        self._held = Held(self._wrong, self.seen) if terms.hold else None

    def take(self, facts: list[Fact]) -> None:
        for fact in facts:
            match fact:
                case Landed():
                    if self._exactly is not None and fact.transaction:
                        self._exactly.landed(fact)
                    else:
                        self._on_landed(fact)
                case Decided():
                    self._on_decided(fact)
                case Seen():
                    if self._exactly is not None:
                        self._exactly.read(fact)
                case Stored():
                    self._on_stored(fact)
                case Began():
                    self._on_began(fact)
                case Ended():
                    self._on_ended(fact)
                case Happened():
                    self._on_happened(fact)

    def _wrong(self, promise: str, what: str) -> None:
        self.problems.append(f"{promise}: {what}")

    # -- topics

    def _on_landed(self, fact: Landed) -> None:
        topic, partition, offset = fact.place
        terms = self.terms
        if topic == terms.topic:
            self._add((partition, offset, ""), fact, Copy(fact.place))
            self._by_key[partition, fact.key].append(offset)
        elif topic == terms.out:
            self._on_output(fact)
        elif topic == f"{terms.lanes}dlq":
            self._on_dead_letter(fact)
        elif topic.startswith(terms.lanes):
            self._on_copy(fact)

    def _on_decided(self, fact: Decided) -> None:
        if self._exactly is not None:
            for landed in self._exactly.decided(fact.transaction, fact.committed):
                self._on_landed(landed)

    def _add(self, identity: Identity, fact: Landed, copy: Copy) -> None:
        topic, partition, offset = fact.place
        self.stories.setdefault(identity, Story(fact.key)).copies.append(copy)
        self._at[fact.place], self._copy[fact.place] = identity, copy
        self._landed[topic, partition].append(offset)

    def _on_copy(self, fact: Landed) -> None:
        topic, partition, _ = fact.place
        named = dict(fact.headers)
        parts = (named.get("pl.d") or b"").split(b" ", 12)
        attempt, hop, epoch, origin_partition, origin = (int(part) for part in parts[1:6])
        copy = Copy(fact.place, attempt, hop, epoch, int(parts[7]), (named.get("pl.hold") or b"").decode())
        identity = (origin_partition, origin, parts[11].partition(b"/")[2].decode())
        if self._held is not None:
            if copy.hold:
                self._held.copy((partition, fact.key), identity[1:], copy.hold)
            elif hop == 0:
                self._held.sent_back((partition, fact.key), identity[1:])
            if copy.hold.startswith("close/"):
                return  # a mark, no record
        if origin_partition != partition:
            self._wrong("I1", f"a copy of partition {origin_partition} is in {topic}[{partition}]")
        if hop == 0 and identity not in self.stories:
            self.seen["replayed record"] += 1
        elif identity not in self.stories:
            self._wrong("I2", f"{topic}[{partition}] has a copy of {identity}, which nobody published")
        earlier = self._due.get((topic, partition, epoch), 0)
        if hop and copy.due_ms < earlier:
            self._wrong("I8", f"due time went back from {earlier} to {copy.due_ms} at {fact.place}")
        self._due[topic, partition, epoch] = max(earlier, copy.due_ms)
        fenced = any(
            at > epoch and hop and fact.place[2] >= fences.get(topic, NEVER) for at, fences in self._fences[partition]
        )
        self.seen["zombie's hand-off landed behind a fence"] += fenced
        if any(c.hop == hop and hop for c in self.stories[identity].copies) if identity in self.stories else False:
            self.seen["two copies of one hop"] += 1
            if self._exactly is not None:
                self._wrong("I5", f"there are two copies of hop {hop} of {identity}, the second at {fact.place}")
        self._add(identity, fact, copy)

    def _on_dead_letter(self, fact: Landed) -> None:
        named = {name: text or b"" for name, text in fact.headers}
        identity = (
            int(named["pl.origin.partition"]),
            int(named["pl.origin.offset"]),
            named.get("pl.replay.id", b"").decode(),
        )
        story = self.stories.get(identity)
        if story is None:
            self._wrong("I2", f"a dead letter of {identity}, which nobody published")
            return
        behind = self._held is not None and self._held.dead_letter(fact, identity[1:], self._epoch[identity[0]])
        story.dead += 1
        story.behind += behind
        self.seen["dead letter"] += 1
        attempt = int(named["pl.attempt"])
        if not behind:
            story.given_up.add(attempt)
        if not (
            behind or story.rejected or story.skipped or (attempt >= self.terms.attempts and attempt in story.failed)
        ):
            self._wrong("I2", f"{identity} is in the dead letters after attempt {attempt}, which was not its last")
        if story.key != fact.key:
            self._wrong("I1", f"the dead letter of {identity} has another key")
        if self._exactly is not None:
            self._exactly.dead_letter(fact, identity)
            self._check_committed_order(identity)

    def _on_output(self, fact: Landed) -> None:
        name = (dict(fact.headers).get("pl.event_id") or b"").decode()
        place, _, index = name.rpartition("#")
        _, partition, origin = place.rsplit("/", 2)
        for identity, story in self.stories.items():
            if identity[:2] == (int(partition), int(origin)):
                story.outputs.add(int(index))
        self.seen["output"] += 1
        if self._exactly is not None:
            began = self._executions[int(fact.value or b"")]
            self._exactly.output(fact, int(index), began)
            self._check_committed_order((int(partition), int(origin), began.replay_id))

    def _check_committed_order(self, identity: Identity) -> None:
        """I3, as readers see it: what comes before it in its key is over by what is committed, or had no effect to wait for."""
        partition, origin, replay_id = identity
        key = self.stories[identity].key
        place = (partition, key)
        aside = replay_id or origin <= self._released.get(place, -1) or self.stories[identity].skipped
        if self.terms.order != "key" or key is None or aside:
            return
        for before in self._by_key[place]:
            story = self.stories[partition, before, ""]
            if before >= origin:
                return
            if not story.ended and not story.skipped:
                self._wrong("I3", f"the effect of {identity} is committed before {before} of its key has its ending")

    # -- commits

    def _settled(self, place: Place) -> bool:
        position = self._positions.get(place[:2])
        return position is not None and position.settled(place[2])

    @property
    def all_settled(self) -> bool:
        return all(self._settled(copy.place) for story in self.stories.values() for copy in story.copies)

    def _on_stored(self, fact: Stored) -> None:
        tp = fact.partition
        before, now = self._positions.get(tp), read_progress(fact.offset, fact.metadata)
        self._positions[tp] = now
        landed = self._landed[tp]
        if before is not None and now.offset < before.offset:
            self.seen["a late commit put a position back"] += 1
        claimed = tp[0] == self.terms.topic and self._on_epoch(tp[1], now)
        if now.open:
            self.seen["done beyond the committed offset"] += 1
        for offset in landed:
            if now.settled(offset) and not (before is not None and before.settled(offset)):
                self._check_settled((*tp, offset))
                self.seen["a claim settled a record that was in a lane"] += claimed

    def _check_settled(self, place: Place) -> None:
        """I6: what a commit calls settled has its ending, or waits somewhere else where it is not settled."""
        identity = self._at[place]
        story = self.stories[identity]
        copy = self._copy[place]
        if not story.ended and any(other is not copy and other.hop == copy.hop > 0 for other in story.copies):
            self.seen["one of two copies of a hop settled before the ending"] += 1
        if not story.ended and all(self._settled(copy.place) for copy in story.copies):
            self._wrong(
                "I6", f"a commit passes {place[0]}[{place[1]}]@{place[2]}, whose record {identity} has no ending"
            )

    def _on_epoch(self, partition: int, now: Progress) -> bool:
        """Is this the claim of a new owner?"""
        known = self._epoch[partition]
        if now.epoch < known:
            self._put_back.add(partition)
            self.seen["a late commit put an epoch back"] += 1
        if now.epoch <= known and (partition, now.epoch) in self._lives:
            return False
        self._epoch[partition] = now.epoch
        fences = {self.terms.lane_topic(name): end for name, end in now.fences}
        self._fences[partition].append((now.epoch, fences))
        floor = {}
        parked = 0
        for identity, story in self.stories.items():
            if identity[0] != partition:
                continue
            opened = [copy for copy in story.copies if not self._settled(copy.place)]
            parked += any(copy.hop for copy in opened)
            if story.executions:
                floor[identity] = min((copy.attempt for copy in opened), default=NEVER)
        self._lives[partition, now.epoch] = Life(floor)
        if self._held is not None and now.epoch > 1:
            self.seen["claim with keys held"] += any(
                heads for (of, _), heads in self._held.heads.items() if of == partition
            )
        self.seen["claim"] += 1
        self.seen["claim with keys parked"] += now.epoch > 1 and parked > 0
        return now.epoch > 1

    # -- handlers

    def _on_began(self, fact: Began) -> None:
        self._executions[fact.number] = fact
        partition = fact.place[1]
        identity = (partition, fact.origin, fact.replay_id)
        story = self.stories[identity]
        life = self._lives.get((partition, fact.epoch))
        if life is None:
            self._wrong(
                "I6", f"#{fact.number} ran in epoch {fact.epoch} of partition {partition}, which was never claimed"
            )
            return
        self._check_repeat(fact, identity, story, life)
        self._check_early(fact, story)
        self._check_order(fact, identity, life)
        self._check_fence(fact)
        if fact.at_ms > self._paused_ms + PAUSE_GRACE_MS:
            self._wrong("pause", f"#{fact.number} began {fact.at_ms - self._paused_ms} ms after the group was paused")
        life.running[fact.number] = (identity, fact.key)

    def _check_repeat(self, fact: Began, identity: Identity, story: Story, life: Life) -> None:
        """I4: an attempt runs again only in another life, and only if it was not durably over when that life began."""
        terms, attempt = self.terms, fact.attempt
        again = story.executions[attempt] > 0
        story.executions[attempt] += 1
        life.ran[identity, attempt] += 1
        if again:
            self.repeats += 1
            self.seen["attempt repeated"] += 1
        if attempt > terms.attempts:
            self._wrong("I4", f"{identity} ran {attempt} times, of {terms.attempts}")
        if terms.moved:
            return
        copies = (
            sum(copy.attempt < attempt for copy in story.copies if copy.hop)
            if terms.order == "none" or fact.key is None
            else 1
        )
        if life.ran[identity, attempt] > max(1, copies):
            self._wrong("I4", f"attempt {attempt} of {identity} ran twice in epoch {fact.epoch}")
        if attempt <= life.floor.get(identity, -1) and partition_trusted(self._put_back, identity):
            self._wrong(
                "I4",
                f"attempt {attempt} of {identity} ran again in epoch {fact.epoch}, though it was settled when that began",
            )
        if again and terms.calm:
            self._wrong("I4", f"attempt {attempt} of {identity} was repeated without a cause")

    def _check_early(self, fact: Began, story: Story) -> None:
        copy = self._copy[fact.place]
        if fact.at_ms + self._set_back_ms < copy.due_ms:
            self._wrong("I8", f"#{fact.number} began {copy.due_ms - fact.at_ms} ms before it was due at {fact.place}")
        wanted = story.not_before.get(fact.attempt)
        if wanted is not None and fact.at_ms + self._set_back_ms < wanted:
            self._wrong("I8", f"#{fact.number}: attempt {fact.attempt} began {wanted - fact.at_ms} ms early")
        if wanted is None and fact.attempt > 1:
            self._wrong(
                "I2", f"#{fact.number}: attempt {fact.attempt} began, but attempt {fact.attempt - 1} never failed"
            )

    def _check_order(self, fact: Began, identity: Identity, life: Life) -> None:
        """I3: a record of a key begins when all before it have their ending."""
        if self.terms.order == "none" or fact.key is None:
            return
        for other, key in life.running.values():
            if key == fact.key:
                self._wrong("I3", f"{identity} began while {other} of the same key was running")
        place = (identity[0], fact.key)
        if self._held is not None:
            ended = partial(self._ended_of, identity[0])
            self._held.check_begin(place, identity[1:], self._released.get(place, -1), ended)
        if self.terms.order != "key" or fact.replay_id:
            return
        if fact.origin <= self._released.get(place, -1):
            self.seen["ran released"] += 1
            return
        if self._exactly is not None:
            self._check_provisional_order(fact, self._exactly)
            return
        origins, first = self._by_key[place], self._first_open[place]
        while first < len(origins) and self.stories[identity[0], origins[first], ""].ended:
            first += 1
        self._first_open[place] = first
        for origin in origins[first:]:
            if origin >= fact.origin:
                break
            story = self.stories[identity[0], origin, ""]
            if not story.ended and not story.skipped:
                self._wrong("I3", f"#{fact.number}: {identity} of {fact.key!r} began before {origin} had its ending")
                break

    def _ended_of(self, partition: int, record: tuple[int, str], behind: bool) -> bool:
        story = self.stories[partition, *record]
        return story.skipped or story.done or story.dead > (story.behind if behind else 0)

    def _check_provisional_order(self, fact: Began, exactly: ExactlyOnce) -> None:
        """What is done need not be committed for the next of its key to begin, but it must be this owner that did it."""
        partition = fact.place[1]
        for origin in self._by_key[partition, fact.key]:
            if origin >= fact.origin:
                break
            identity = (partition, origin, "")
            story = self.stories[identity]
            if exactly.is_over((partition, fact.epoch), identity) or story.skipped:
                continue
            if not all(self._settled(copy.place) for copy in story.copies):
                self._wrong("I3", f"#{fact.number}: {fact.origin} of {fact.key!r} began before {origin} was over")
                break

    def _check_fence(self, fact: Began) -> None:
        """(g): at or behind a fence, what an earlier owner wrote never runs."""
        copy, partition = self._copy[fact.place], fact.place[1]
        if not copy.hop or partition in self._put_back:
            return
        for epoch, fences in self._fences[partition]:
            if copy.epoch < epoch <= fact.epoch and fact.place[2] >= fences.get(fact.place[0], NEVER):
                self._wrong(
                    "fence",
                    f"#{fact.number}: a zombie's record at {fact.place} ran (epoch {copy.epoch}, fenced by {epoch})",
                )
                return

    def _on_ended(self, fact: Ended) -> None:
        began = self._executions[fact.number]
        partition = began.place[1]
        story = self.stories[partition, began.origin, began.replay_id]
        life = self._lives.get((partition, began.epoch))
        if life is not None:
            life.running.pop(fact.number, None)
        self.seen[fact.outcome] += 1
        story.outcomes[began.attempt][began.epoch] = fact.outcome
        last = began.attempt >= self.terms.attempts
        if self._exactly is not None and (fact.outcome in ("ok", "rejected") or last):
            identity = (partition, began.origin, began.replay_id)
            self._exactly.over((partition, began.epoch), identity)
        if fact.outcome == "ok":
            story.wanted = fact.outputs
            if self._held is not None:
                self._held.done((partition, began.key), (began.origin, began.replay_id))
            return
        story.rejected |= fact.outcome == "rejected"
        # What was cancelled has failed if its time was up, which its next attempt tells.
        story.failed.add(began.attempt)
        due_ms = fact.at_ms + fact.wait_ms
        story.not_before[began.attempt + 1] = min(due_ms, story.not_before.get(began.attempt + 1, due_ms))

    # -- what was done to them

    def _on_happened(self, fact: Happened) -> None:
        self.seen[fact.kind] += 1
        if fact.kind == "gone":
            for life in self._lives.values():
                for number in [n for n in life.running if self._executions[n].worker == fact.about]:
                    del life.running[number]
        elif fact.kind in ("jump", "stall"):
            by_ms = int(fact.about)
            self._set_back_ms += max(0, -by_ms)  # what was due before is due again
            self._paused_ms = max(self._paused_ms, fact.at_ms + max(0, by_ms))  # also after a jump back
        elif fact.kind == "pause":
            self._paused_ms = fact.at_ms
        elif fact.kind == "resume":
            self._paused_ms = NEVER << 20
        elif fact.kind == "skip":
            story = self.stories.get((fact.partition, fact.origin, ""))
            if story is not None:
                story.skipped = True
        elif fact.kind == "a release while nobody is in the group" and self._held is not None:
            self._held.nobodys[fact.partition] = self._epoch[fact.partition]
        elif fact.kind == "release":
            place = (fact.partition, fact.key)
            self._released[place] = max(fact.origin, self._released.get(place, -1))

    # -- the end

    def check_end(self) -> None:
        """I1, I2, and that nothing is left open when everybody has stopped."""
        if self._exactly is not None:
            self._exactly.check_end()
        repeatable = self.terms.whole or self.terms.moved
        for identity, story in self.stories.items():
            both = story.done and story.dead > story.behind and not story.skipped and not repeatable
            if not story.ended:
                self._wrong("I1", f"{identity} has no ending")
            elif both and (self._exactly is not None or not story.ended_otherwise):
                self._wrong("I2", f"{identity} is done and in the dead letters")
            if self.terms.calm and story.dead - story.behind > 1:
                self._wrong("I2", f"{identity} has {story.dead - story.behind} dead letters")
            lives = sum(1 for life_of, _ in self._lives if life_of == identity[0])
            runs, needed = sum(story.executions.values()), max(story.executions, default=0)
            if runs > needed * max(1, lives) and story.key is not None and self.terms.order != "none":
                self._wrong("I4", f"{identity} ran {runs} times: {needed} attempts, {lives} owners")
            for copy in story.copies:
                waits = copy.hold == "held" and self._held is not None
                if waits and self._held is not None and identity[1:] in self._held.heads[identity[0], story.key]:
                    self.seen["key held to the end"] += 1
                elif not self._settled(copy.place) and not self.terms.moved:
                    self._wrong("I1", f"{copy.place} is still open at the end")


def partition_trusted(put_back: set[int], identity: Identity) -> bool:
    """Its epoch never went back: a late commit of an earlier owner makes the next one read older progress."""
    return identity[0] not in put_back
