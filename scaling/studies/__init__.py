"""Studies: many runs that are declared, trained, resumed and reported together; see
docs/studies.md."""
