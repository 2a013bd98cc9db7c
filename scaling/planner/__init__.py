"""The planner turns a configuration into a layout and its predictions: parameters, memory, time,
cost. Needs no torch."""
