"""Assets, one module per layer: raw, calendar, gdp, kpi, published. Each is made from a manifest by a factory.

An asset hands a stage specification to the runner and turns the receipt into metadata and check results; it computes
nothing itself.
"""
