"""Jobs as callers see them: asked for, followed, and their results read. What runs them is in `worker.jobs`."""
