"""Package mmecg.v1: one module a proto file."""
