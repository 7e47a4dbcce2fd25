"""Dead letters: an index of them that is rebuilt at will, and what people do with them: look, redrive, edit, purge, convert, export."""

from pipeline.dead_letters.acting import Actor, Done
from pipeline.dead_letters.api import (
    cancel_dead_letters,
    convert_dead_letter,
    dead_letter_stats,
    edit_dead_letter,
    export_dead_letters,
    list_dead_letters,
    purge_dead_letters,
    redrive_dead_letters,
    release_dead_letters,
    search_dead_letters,
    show_dead_letter,
    where,
)
from pipeline.dead_letters.query import Letter, Page, Wanted
from pipeline.dead_letters.redrive_plan import RedrivePolicy

__all__ = [
    "Actor",
    "Done",
    "Letter",
    "Page",
    "RedrivePolicy",
    "Wanted",
    "cancel_dead_letters",
    "convert_dead_letter",
    "dead_letter_stats",
    "edit_dead_letter",
    "export_dead_letters",
    "list_dead_letters",
    "purge_dead_letters",
    "redrive_dead_letters",
    "release_dead_letters",
    "search_dead_letters",
    "show_dead_letter",
    "where",
]
