"""Replays: a plan says what is sent again and where to, its execution is a committed group, and every record has a result."""
