"""Operations: what people ask the platform for, whichever mouth they ask with. No printing, no HTTP.

Adding an operation: a module here with a function that takes the opened project and plain values, does the work or
raises a `BareCountError`, and returns a frozen dataclass; then a verb in `cli/` that shows it.
"""
