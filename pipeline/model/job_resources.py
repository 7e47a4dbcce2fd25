"""What one execution of a job may take of its machine, as people write it and as the code holds it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pipeline.model.errors import ConfigurationError
from pipeline.model.policies import check_kind

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?")
_UNITS = {None: 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
MEMORY_MIN = 64 * 2**20
"""Less than an interpreter needs to load anything."""
CPU_MAX = 1_024


@dataclass(frozen=True, slots=True)
class JobResources:
    """`memory_bytes`: address space; `cpu`: processors, 0.5 for half of one. None: not stated."""

    memory_bytes: int | None = None
    cpu: float | None = None

    @property
    def processors(self) -> int | None:
        """So many it may run on at once."""
        return None if self.cpu is None else math.ceil(self.cpu)

    def at_once(self, most: int, processors: int) -> int:
        """So many executions the processors of a machine are enough for, `most` of them and at least one."""
        return most if self.cpu is None else max(1, min(most, int(processors / self.cpu)))


NOT_STATED = JobResources()


def Resources(*, memory: str | int | None = None, cpu: float | None = None) -> JobResources:
    """`memory`: bytes, or "512MB", "2GiB"; `cpu`: processors, such as 0.5 or 2. Raises ConfigurationError."""
    return check_resources(JobResources(None if memory is None else _bytes(memory), cpu))


def check_resources(resources: JobResources) -> JobResources:
    """The same, or a ConfigurationError naming the field."""
    check_kind("resources", resources, JobResources, 'Resources(memory="1GiB", cpu=1)')
    memory, cpu = resources.memory_bytes, resources.cpu
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int)):
        raise ConfigurationError(f'memory_bytes={memory!r:.80} must be a whole number: use Resources(memory="1GiB")')
    if memory is not None and memory < MEMORY_MIN:
        raise ConfigurationError(f"memory={memory} bytes is less than a process needs: give at least 64MiB")
    if cpu is not None and (isinstance(cpu, bool) or not isinstance(cpu, int | float) or not 0.01 <= cpu <= CPU_MAX):
        raise ConfigurationError(f"cpu={cpu!r:.80} must be a number of processors from 0.01 to {CPU_MAX}")
    return resources


def _bytes(text: str | int) -> int:
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ConfigurationError(f'memory={text!r:.80} must be a number of bytes, or a text such as "512MB" or "2GiB"')
    return int(float(found[1]) * (_UNITS | _BINARY)[found[2]])
