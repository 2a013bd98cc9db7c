"""Studies: many runs that are declared, run, resumed and told of together; see docs/studies.md."""
