"""What the pipeline costs beside a bare loop that does the same work: `python -m bench`, or `make bench`.

Every measurement runs in an interpreter of its own (`bench.child`), against one embedded broker. docs/guide/benchmarks.md
says what each number means.
"""
