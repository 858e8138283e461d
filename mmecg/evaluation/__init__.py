"""How good a bundle is: metrics, patient-clustered intervals, and the protocols of ``mmecg evaluate``."""
