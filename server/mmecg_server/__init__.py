"""The gRPC server: the services of ``mmecg.v1`` around a model and a corpus; run ``python -m mmecg_server``."""
