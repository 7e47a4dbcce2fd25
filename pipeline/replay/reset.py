"""Where a reset moves a group: positions in, positions out. Pure; every mode of Kafka's own reset tool.

What the commit's text knows survives where it still holds: the owner's epoch and the fences always (rule g), the map of done
offsets when the group moves on (or stays), because then nothing of it is to run again. Moving back drops it: all of that runs again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.core.progress import Progress
from pipeline.model.cluster import TopicPartition
from pipeline.model.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Standing:
    """One partition: what the group committed (None: never), where the log begins, and the offset its next record will get."""

    progress: Progress | None
    beginning: int
    end: int


@dataclass(frozen=True, slots=True)
class Move:
    """One partition's part of a reset, in offsets. `again`: settled ones that will be processed again; `skipped`: unsettled
    ones that will not be processed any more. `note`: what was done differently from what was asked."""

    place: TopicPartition
    current: int | None
    new: int
    again: int
    skipped: int
    note: str = ""


Target = Callable[[TopicPartition, Standing], int | None]


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to say where to. `target` gives the wanted offset, None to leave a partition as it is.

    `exact`: an offset that the log does not hold is refused; otherwise it is moved to the nearest end and noted.
    """

    option: str
    target: Target
    exact: bool = True


def to_earliest() -> Mode:
    return Mode("--to-earliest", lambda _place, at: at.beginning)


def to_latest() -> Mode:
    return Mode("--to-latest", lambda _place, at: at.end)


def to_current() -> Mode:
    """Commits what is committed again: with an export, a copy of where the group stands. What retention has passed is no error."""
    return Mode("--to-current", lambda _place, at: at.progress.offset if at.progress is not None else None, exact=False)


def to_offset(everywhere: int | None, by_partition: Mapping[int, int]) -> Mode:
    """One offset for all partitions, another for those that are named; without the first, only those that are named move."""
    return Mode("--to-offset", lambda place, _at: by_partition.get(place.partition, everywhere))


def to_found(option: str, found: Mapping[TopicPartition, int]) -> Mode:
    """Offsets that were looked up by time, or read from a file; partitions without one stay."""
    return Mode(option, lambda place, _at: found.get(place))


def shift_by(count: int) -> Mode:
    """So many offsets on (or back, when negative) from what is committed; at most to an end of the log."""

    def target(place: TopicPartition, at: Standing) -> int:
        if at.progress is None:
            raise ConfigurationError(
                f"--shift-by {count}: the group has committed nothing on {place.topic} partition {place.partition}, so there is "
                "nothing to shift: leave the partition out with --partition, or say where to with --to-offset"
            )
        return at.progress.offset + count

    return Mode("--shift-by", target, exact=False)


def plan_moves(mode: Mode, standings: Mapping[TopicPartition, Standing]) -> list[Move]:
    """What the reset would do, partition by partition. Raises `ConfigurationError` with the valid range of an offset out of it."""
    moves = []
    for place in sorted(standings):
        at = standings[place]
        wanted = mode.target(place, at)
        if wanted is None:
            continue
        new, note = wanted, ""
        if not at.beginning <= wanted <= at.end:
            if mode.exact:
                raise ConfigurationError(
                    f"{mode.option}: offset {wanted} is out of range on {place.topic} partition {place.partition}, "
                    f"which takes {at.beginning} to {at.end}"
                )
            new = min(max(wanted, at.beginning), at.end)
            note = f"{wanted} is out of range"
        moves.append(_move(place, at, new, note))
    return moves


def _move(place: TopicPartition, at: Standing, new: int, note: str) -> Move:
    if at.progress is None:
        return Move(place, None, new, 0, new - at.beginning, note)
    progress = at.progress
    return Move(
        place, progress.offset, new, _settled_from(progress, at, new), _unsettled_below(progress, at, new), note
    )


def _settled_from(progress: Progress, at: Standing, new: int) -> int:
    """Offsets from `new` on that are settled now and would not be afterwards."""
    if new >= progress.offset:
        return 0
    end = min(progress.end, at.end)
    return end - new - sum(1 for offset in progress.open if offset < end)


def _unsettled_below(progress: Progress, at: Standing, new: int) -> int:
    """Offsets below `new` that the log holds and that are not settled now."""
    inside = sum(1 for offset in progress.open if at.beginning <= offset < new)
    return inside + max(0, new - max(progress.end, at.beginning))


def moved(progress: Progress, new: int) -> Progress:
    """The progress after the move, epoch and fences as they are: see the module for what becomes of the map."""
    if new < progress.offset:
        return replace(progress, offset=new, end=new, open=())
    opened = tuple(offset for offset in progress.open if offset >= new)
    return replace(progress, offset=new, end=max(new, progress.end), open=opened)


# -- what people write


def parse_offsets(texts: Iterable[str], option: str) -> tuple[int | None, dict[int, int]]:
    """ "100" for every partition, "3:100" for one -> (offset for all or None, offset by partition)."""
    everywhere: int | None = None
    by_partition: dict[int, int] = {}
    for text in texts:
        head, colon, tail = text.strip().rpartition(":")
        if not (tail.isascii() and tail.isdigit() and (not colon or (head.isascii() and head.isdigit()))):
            raise ConfigurationError(
                f"{option} {text!r:.40} must be an offset, or P:O for one partition, such as 3:1500"
            )
        if colon:
            by_partition[int(head)] = int(tail)
        else:
            everywhere = int(tail)
    return everywhere, by_partition


def format_csv(positions: Iterable[tuple[TopicPartition, int]]) -> str:
    """As Kafka's own tool exports them: `topic,partition,offset`, no heading."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows((tp.topic, tp.partition, offset) for tp, offset in positions)
    return out.getvalue()


def parse_csv(text: str, group: str, name: str) -> dict[TopicPartition, int]:
    """What `format_csv` or Kafka's tool wrote (`group,topic,partition,offset` too: other groups' lines are left out).

    Raises `ConfigurationError` naming the file and line.
    """
    found: dict[TopicPartition, int] = {}
    for number, row in enumerate(csv.reader(io.StringIO(text)), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) == 4:
            if cells[0] != group:
                continue
            cells = cells[1:]
        if len(cells) != 3 or not _is_count(cells[1]) or not _is_count(cells[2]):
            raise ConfigurationError(
                f"{name} line {number} is not `topic,partition,offset`: give a file that --export wrote, or Kafka's own tool"
            )
        place = TopicPartition(cells[0], int(cells[1]))
        if found.setdefault(place, int(cells[2])) != int(cells[2]):
            raise ConfigurationError(
                f"{name} line {number} names {place.topic} partition {place.partition} a second time, with another offset"
            )
    return found


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()


def check_partitions(topic: str, known: Collection[int], named: Iterable[int]) -> None:
    """Raises `ConfigurationError` for a partition that the topic does not have, or that was not chosen."""
    for number in named:
        if number not in known:
            has = f"{min(known)} to {max(known)}" if len(known) == max(known) - min(known) + 1 else sorted(known)
            raise ConfigurationError(
                f"partition {number} of topic {topic} is not there, or was not chosen: there is {has}"
            )


def totals(moves: Sequence[Move]) -> tuple[int, int]:
    """(again, skipped) over all partitions."""
    return sum(move.again for move in moves), sum(move.skipped for move in moves)
