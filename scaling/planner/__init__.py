"""From a configuration to a layout and its predictions: parameters, memory, time, cost. Needs no
torch."""
