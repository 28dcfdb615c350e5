"""The services' own handlers in a deterministic, seeded world: only what they stand on is replaced.

Virtual time, a hub API whose watches are cut and compacted, a bus that duplicates, reorders and forgets, workers that
die between any two effects. A seed repeats a run exactly.
"""
