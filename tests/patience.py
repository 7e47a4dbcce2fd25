"""How much longer than on an idle machine of ours a test may take: its deadlines tell what hangs from what works, not how fast it is.

A machine that many share was seen to work at a third of another's speed, and four test processes share it again. What a test says
of time itself is bounded where it says it, by what the defect would take.
"""

from __future__ import annotations

PATIENCE = 4
