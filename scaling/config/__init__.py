"""The validated configuration: one typed model per group in conf/, and the identity of a run."""
