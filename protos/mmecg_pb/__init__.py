"""Generated code of the mmecg protos; regenerate with `scripts/gen-protos`."""
