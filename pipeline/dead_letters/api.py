"""The commands of `pipeline dlq` as functions. `app` is a `Pipeline`, or whatever has its `cluster`, `codec`, `settings` and `layouts()`.

Each brings the index up to date first. Choose the dead letters by `group` or `topic`, and with a `Wanted`. All may raise a
`PipelineError`: `ConfigurationError` for what was asked wrongly, `TopologyError` where a topic is missing, `ClusterUnavailable`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.dead_letters import converting, editing, exporting, marking, redrive
from pipeline.dead_letters.acting import Actor, Done, begin
from pipeline.dead_letters.desk import Application, Desk, group_name
from pipeline.dead_letters.details import Details, details
from pipeline.dead_letters.job_inputs import readable
from pipeline.dead_letters.query import Page, Wanted
from pipeline.dead_letters.redrive import CANARY_DEADLINE_S, Redriven
from pipeline.dead_letters.redrive_plan import RedrivePolicy
from pipeline.dead_letters.states import id_of
from pipeline.dead_letters.stats import Stats, stats
from pipeline.filters import compile_filter
from pipeline.model.errors import ConfigurationError

OPEN = Wanted(states=("open",))


def _now_ms() -> int:
    return int(time.time() * 1000)


def _opened(app: Application, group: str | None, topic: str | None) -> Desk:
    desk = Desk.of(app, group, topic)
    try:
        desk.refresh()
    except BaseException:
        desk.close()
        raise
    return desk


def where(text: str, **more: Any) -> Wanted:
    """Open dead letters that match a filter: `where('attempt >= 3 and tenant == "acme"')`."""
    return Wanted(**{"states": ("open",), **more, "where": compile_filter(text, _now_ms())})


def list_dead_letters(
    app: Application, *, group: str | None = None, topic: str | None = None, wanted: Wanted = OPEN, limit: int = 50, after: str = ""
) -> Page:  # fmt: skip
    """A page, newest first; `Page.cursor` is `after` of the next."""
    with _opened(app, group, topic) as desk:
        return desk.page(wanted, limit, after)


def search_dead_letters(
    app: Application, text: str = "", *, group: str | None = None, topic: str | None = None, where: str = "", limit: int = 50,
    after: str = "", **more: Any,
) -> Page:  # fmt: skip
    """By text, filter and fields of `Wanted` (`tenants=("acme",)`, `error_types=...`). Also those that are no longer open."""
    test = compile_filter(where, _now_ms()) if where else None
    with _opened(app, group, topic) as desk:
        return desk.page(Wanted(text=text, where=test, **more), limit, after)


def dead_letter_stats(
    app: Application, *, group: str | None = None, topic: str | None = None, wanted: Wanted = OPEN, top: int = 20
) -> Stats:
    """Counted by normalised error, type, tenant and age. The filter must be one that the index can answer alone."""
    with _opened(app, group, topic) as desk:
        query = desk.query(wanted)
        if not query.exact:
            query = desk.chosen(desk.matching(wanted), Wanted())
        return stats(desk.store.db, query, _now_ms(), top)


def show_letters(desk: Desk, wanted: Wanted, limit: int, reveal: Actor | None, now_ms: int) -> list[Details]:
    """Details of the newest that match; `reveal`: who may see what is masked, and why: written to the audit first."""
    page = desk.page(wanted, limit)
    numbers = [id_of(letter.partition, letter.offset) for letter in page.letters]
    if reveal is not None and numbers:
        begin(desk, reveal, "reveal", numbers, now_ms)
    found = {id_of(m.partition(), m.offset()): details(desk, m, reveal is not None) for m in desk.fetch(numbers)}
    return [found[number] for number in numbers if number in found]


def show_dead_letter(
    app: Application, position: tuple[int, int], *, group: str | None = None, topic: str | None = None, reveal: Actor | None = None
) -> Details:  # fmt: skip
    """Everything about the one at (partition, offset). Raises `ConfigurationError` when it is not there."""
    with _opened(app, group, topic) as desk:
        found = show_letters(desk, Wanted(positions=(position,)), 1, reveal, _now_ms())
        if not found:
            raise _absent(desk, position)
        return found[0]


def _at(desk: Desk, position: tuple[int, int]) -> int:
    """The one dead letter at (partition, offset), as a number. Raises `ConfigurationError` when it is not there, or another group's."""
    found = desk.matching(Wanted(positions=(position,)))
    if not found:
        raise _absent(desk, position)
    return found[0]


def _absent(desk: Desk, position: tuple[int, int]) -> ConfigurationError:
    whose = f" of group {desk.topics.group}" if desk.topics.group else ""
    return ConfigurationError(
        f"there is no dead letter {position[0]}:{position[1]}{whose} in {desk.topics.dead_letters}"
    )


def redrive_dead_letters(
    app: Application, wanted: Wanted, actor: Actor, *, group: str | None = None, topic: str | None = None, canary: int = 10,
    deadline_s: float = CANARY_DEADLINE_S, policy: RedrivePolicy | None = None,
) -> Redriven:  # fmt: skip
    """Send them back to their group, in the order of their keys; `canary` of distinct keys first, which must get done."""
    policy = policy or RedrivePolicy()
    with _opened(app, group, topic) as desk:
        now = _now_ms()
        prepared = redrive.prepare(desk, desk.matching(wanted), actor.who, now, policy, canary)
        return redrive.run(desk, prepared, actor, now, policy, deadline_s)


def release_dead_letters(
    app: Application, keys: Sequence[str], actor: Actor, *, group: str | None = None, topic: str | None = None,
    policy: RedrivePolicy | None = None,
) -> Redriven:  # fmt: skip
    """Let held keys go: the held records are cancelled, what followed them goes back to the group in order. No keys: all that are held."""
    with _opened(app, group, topic) as desk:
        name = group_name(desk, str(app.settings.prefix) + group if group else "")
        return redrive.release(desk, name, keys, actor, _now_ms(), policy or RedrivePolicy())


def edit_dead_letter(
    app: Application, position: tuple[int, int], change: Callable[[Any], Any], actor: Actor, *, group: str | None = None,
    topic: str | None = None,
) -> Done:  # fmt: skip
    """Append a new version whose value is `change(value)`, checked against its schema; the old one stays, as `edited`. In the
    value the input of a job stands as the JSON that it is."""
    actor.check()
    with _opened(app, group, topic) as desk:
        now = _now_ms()
        editable = editing.open_for_edit(desk, _at(desk, position))
        begin(desk, actor, "reveal", [editable.number], now)
        changed = readable(editable.shown.type, change(editable.value))
        edited = editing.check_edit(editable, editing.text_of(changed, editable.shown.schema is not None))
        return editing.apply_edit(desk, editable, edited, actor, now)


def purge_dead_letters(
    app: Application, wanted: Wanted, actor: Actor, *, group: str | None = None, topic: str | None = None
) -> Done:
    """Give them up for good; see `marking`."""
    with _opened(app, group, topic) as desk:
        return marking.purge(desk, desk.matching(wanted), actor, _now_ms())


def cancel_dead_letters(
    app: Application, wanted: Wanted, actor: Actor, *, group: str | None = None, topic: str | None = None
) -> Done:
    """Give them up, to be read still."""
    with _opened(app, group, topic) as desk:
        return marking.cancel(desk, desk.matching(wanted), actor, _now_ms())


def convert_dead_letter(
    app: Application, position: tuple[int, int], actor: Actor, *, assignee: str, instruction: str, group: str | None = None,
    topic: str | None = None,
) -> Done:  # fmt: skip
    """File a manual task for it."""
    with _opened(app, group, topic) as desk:
        return converting.convert(desk, [_at(desk, position)], actor, assignee, instruction, _now_ms())


def export_dead_letters(
    app: Application, wanted: Wanted = OPEN, *, group: str | None = None, topic: str | None = None, reveal: Actor | None = None
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One plain object each, scrubbed unless `reveal` says who may see everything, and why."""
    with _opened(app, group, topic) as desk:
        numbers: Sequence[int] = desk.matching(wanted)
        if reveal is not None and numbers:
            begin(desk, reveal, "reveal", numbers, _now_ms())
        yield from exporting.export(desk, numbers, reveal is not None)
