"""Published foundation models as encoders: what each is, its network, its preprocessing, and loading it."""
