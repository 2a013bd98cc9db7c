"""DeepSpeed behind the engine contract: the only modules that import it."""
